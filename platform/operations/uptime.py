"""Seconds that never jump and go on while the machine sleeps."""

import time

# CLOCK_MONOTONIC stands still during suspend on Linux; a lease does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime() -> float:
    return time.clock_gettime(_CLOCK)
