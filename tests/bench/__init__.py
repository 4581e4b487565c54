"""Measures speed, memory and size, paired in one run with peers on the same data: `make bench`.

One file per section, each with `measure(folder, scale=…, rounds=…) -> Section`; `__main__` runs them and writes
docs/benchmarks.md. `measure` runs a command, `programs` knows whose, `corpus` and `rows` make the data.
"""
