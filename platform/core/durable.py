"""Small files that must be whole, private and written once."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from engine.faults import kill_point

PRIVATE_FOLDER_MODE = 0o700
PRIVATE_FILE_MODE = 0o600


def private_folder(path: Path) -> Path:
    """Make the folder and its missing parents, open to its owner alone; one that exists stays as it is."""
    if not path.is_dir():
        if not path.parent.is_dir():
            private_folder(path.parent)
        path.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)
    return path


def read_or_create(path: Path, make: Callable[[], bytes]) -> bytes:
    """Read the file, or write what `make` gives and return that; never replaces a file.

    Of several processes that start at once one writes and all return the same bytes: the content goes to a
    temporary file, reaches the disk, and takes its name by `link()`, which fails where the name is taken.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    private_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        _write_new(draft, make())
        kill_point("key.drafted")
        try:
            os.link(draft, path)
        except FileExistsError:
            return path.read_bytes()
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path.read_bytes()


def _write_new(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE_MODE)
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
