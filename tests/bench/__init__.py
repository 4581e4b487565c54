"""Measures speed, memory and size, paired in one run with peers on the same data: `make bench`.

One file per scenario in `scenarios/`; `__main__` runs them in interleaved rounds and writes the report.
"""
