"""A scratch folder of bounded size that is gone afterwards, whatever ends the run.

Root gets a file system of its own: a fresh ext4 with a journal in a sparse image file, read and written past the
outer page cache. It bounds what the run can use, and it starts empty, which matters: on a file system that has
just seen a million deletions (and without a journal for minutes after them) making one file takes up to fifty
times as long, for both programs, and the ratio of a restore says nothing. Others get a plain folder.
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

FOLDER_VARIABLE = "LASTRO_BENCH_FOLDER"
DISK_VARIABLE = "LASTRO_BENCH_DISK"
FOLDER_PREFIX = "lastro-bench-"
IMAGE_BYTES = 20_000_000_000
IMAGE_INODES = 3_500_000
IMAGE, MOUNT = "image", "disk"
FREE_MARGIN = 1.25


class TooLittleRoom(Exception):
    """The disk has less free space than the section may need."""


def scratch() -> Path:
    """Make the run's folder; it is removed at exit, and by the next run when this one is killed."""
    parent = Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir())
    for path in parent.glob(f"{FOLDER_PREFIX}*"):
        pid = path.name.removeprefix(FOLDER_PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            _discard(path)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=parent))
    folder.chmod(0o711)  # a database server runs as an account without rights
    atexit.register(_discard, folder)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    wanted = os.environ.get(DISK_VARIABLE, "image")
    return _mounted(folder) or folder if wanted == "image" and os.getuid() == 0 else folder


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _mounted(folder: Path) -> Path | None:
    """A new file system below the folder; None where this machine cannot do that."""
    image, mount = folder / IMAGE, folder / MOUNT
    disk = os.statvfs(folder)
    size = min(IMAGE_BYTES, int(disk.f_bavail * disk.f_frsize * 0.8))
    with image.open("wb") as file:
        file.truncate(size)
    mount.mkdir()
    made = _quietly("mkfs.ext4", "-q", "-F", "-N", IMAGE_INODES, "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    device = _quietly("losetup", "--find", "--show", "--direct-io=on", image) if made is not None else None
    if not device or _quietly("mount", "-o", "noatime", device.strip(), mount) is None:
        _discard_image(folder)
        return None
    mount.chmod(0o711)
    shutil.rmtree(mount / "lost+found")
    return mount


def _quietly(*command: object) -> str | None:
    """Output of a command; None when it fails or does not exist."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout


def _discard_image(folder: Path) -> None:
    _quietly("umount", "--lazy", folder / MOUNT)
    for line in (_quietly("losetup", "--associated", folder / IMAGE) or "").splitlines():
        _quietly("losetup", "--detach", line.split(":")[0])
    (folder / IMAGE).unlink(missing_ok=True)


def _discard(folder: Path) -> None:
    if (folder / IMAGE).exists():
        _discard_image(folder)
    remove(folder)


def remove(folder: Path) -> None:
    """Remove a tree with everything in it; nothing happens when it is not there."""
    shutil.rmtree(folder, ignore_errors=True)


def describe(folder: Path) -> str:
    """On what kind of file system the folder lies."""
    found = _quietly("findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--target", folder)
    kind, _, source = (found or "an unknown file system").strip().partition(" ")
    return f"{kind} in an image file of its own" if source.strip().startswith("/dev/loop") else f"{kind}, shared"


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
