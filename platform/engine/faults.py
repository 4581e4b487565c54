"""Labelled points at which the fault tests kill the process.

`LASTRO_KILL_AT=label` or `label:n` (n-th passage, from 1) ends the process with SIGKILL there, as a
power cut would; with `LASTRO_KILL_WITH=INT` it gets a Ctrl-C there instead, and goes on. Without the variable a
point costs one comparison.
"""

import os
import signal

_wanted, _, _nth = os.environ.get("LASTRO_KILL_AT", "").partition(":")
_signal = signal.SIGINT if os.environ.get("LASTRO_KILL_WITH") == "INT" else signal.SIGKILL
_passages = 0


def kill_point(label: str) -> None:
    """Die here when the environment names this label; labels are listed in docs/faults.md."""
    if not _wanted or label != _wanted:
        return
    global _passages
    _passages += 1
    if _passages == int(_nth or "1"):
        os.kill(os.getpid(), _signal)
