"""Connections to SQLite files, and what their errors mean to an operator."""

import os
import sqlite3
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from engine.errors import (
    LastroError,
    SourceDenied,
    SourceError,
    SourceUnreachable,
    TargetDenied,
    TargetError,
    TargetFull,
    TargetUnreachable,
)

CACHE_KIB = 16 << 10


def connect(path: str, mode: Literal["ro", "rw", "rwc"], *, timeout: float) -> sqlite3.Connection:
    """Open without a transaction; text comes as bytearray. Raises sqlite3.Error."""
    uri = f"file:{urllib.parse.quote(os.path.abspath(path))}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    connection.text_factory = bytearray
    return connection


def cache_enlarge(connection: sqlite3.Connection) -> None:
    """Give the connection a cache of CACHE_KIB; it reads the schema, and therefore needs the lock."""
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")


@contextmanager
def source_errors(path: str) -> Iterator[None]:
    """Turn sqlite3 and file errors into SourceError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _source_error(path, error) from error
    except OSError as error:
        raise SourceUnreachable(f"cannot read {path}: {error.strerror}") from error


def _source_error(path: str, error: sqlite3.Error) -> LastroError:
    text = str(error)
    if "locked" in text or "busy" in text:
        return SourceUnreachable(
            f"{path} is locked by another program", hint="try again, raise busy_seconds, or switch the file to WAL"
        )
    if "not a database" in text or "malformed" in text or "corrupt" in text or "disk image" in text:
        return SourceError(
            f"{path} is no intact SQLite database: {text}", hint="run: sqlite3 FILE 'PRAGMA integrity_check'"
        )
    if "unable to open" in text:
        if os.path.exists(path) and not os.access(path, os.R_OK):
            return SourceDenied(f"{path} may not be read", hint="give the worker's user read access to file and folder")
        return SourceUnreachable(
            f"cannot open {path}",
            hint="try an existing file; a file in WAL mode needs its folder writable for -shm and -wal",
        )
    if "readonly" in text or "read-only" in text:
        return SourceDenied(
            f"{path} needs recovery that a reader may not do: {text}",
            hint="let its application open it once, so that the journal of its last crash is rolled back",
        )
    return SourceError(f"reading {path} failed: {text}")


@contextmanager
def target_errors(path: str) -> Iterator[None]:
    """Turn sqlite3 and file errors into TargetError."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise TargetError(
            f"a restored row collides with one that is not the tenant's: {error}",
            hint="its key or a unique value was taken since the backup; restore to another place (path=FILE)",
        ) from error
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise TargetUnreachable(
                f"{path} is locked by another program", hint="stop long writers, or raise busy_seconds"
            ) from error
        if "full" in text:
            raise TargetFull(f"no room to restore into {path}", hint="free space and run the restore again") from error
        if "readonly" in text or "unable to open" in text:
            raise TargetDenied(
                f"{path} may not be written: {text}", hint="check the rights of file and folder"
            ) from error
        raise TargetError(f"restoring into {path} failed: {text}") from error
    except OSError as error:
        raise TargetDenied(f"cannot write {path}: {error.strerror}") from error
