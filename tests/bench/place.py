"""A scratch folder of bounded size that is gone afterwards, whatever ends the run."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

FOLDER_VARIABLE = "LASTRO_BENCH_FOLDER"
FOLDER_PREFIX = "lastro-bench-"
FREE_MARGIN = 1.25


class TooLittleRoom(Exception):
    """The disk has less free space than the section may need."""


def scratch() -> Path:
    """Make the run's folder; it is removed at exit, and by the next run when this one is killed."""
    parent = Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir())
    _remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=parent))
    atexit.register(remove, folder)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    return folder


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _remove_leftovers(parent: Path) -> None:
    for path in parent.glob(f"{FOLDER_PREFIX}*"):
        pid = path.name.removeprefix(FOLDER_PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            remove(path)


def remove(folder: Path) -> None:
    """Remove a tree with everything in it; nothing happens when it is not there."""
    shutil.rmtree(folder, ignore_errors=True)


def require(folder: Path, *, gigabytes: float, files: int = 0) -> None:
    """Stop before the disk is full: raises TooLittleRoom unless the space and the inodes are free."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    needed = int(gigabytes * 1e9 * FREE_MARGIN)
    if free < needed:
        raise TooLittleRoom(
            f"{needed / 1e9:.1f} GB free needed at {folder}, {free / 1e9:.1f} GB there: "
            f"set {FOLDER_VARIABLE}, or a smaller --scale"
        )
    if disk.f_files and disk.f_favail < files * FREE_MARGIN:
        raise TooLittleRoom(f"{files} inodes needed at {folder}, {disk.f_favail} free: set {FOLDER_VARIABLE}")


def tree_bytes(folder: Path) -> int:
    """The sizes of all files below a folder, added up."""
    total = 0
    for top, _, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(top, name)).st_size for name in names)
    return total
