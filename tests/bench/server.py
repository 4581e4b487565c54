"""The PostgreSQL of the measurements: durable, sized for production, thrown away at the end."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import Run, pipeline, run
from tests.bench.programs import plain_environment
from tests.services.postgres import PostgresServer

SETTINGS = {
    "shared_buffers": "512MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "effective_cache_size": "4GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
}
ABOUT = (
    "fsync on, " + ", ".join(f"{key} {SETTINGS[key]}" for key in ("shared_buffers", "maintenance_work_mem", "max_wal_size"))
    + "; vacuum and checkpoints between the measurements instead of during them"
)  # fmt: skip


@contextmanager
def serving(folder: Path) -> Iterator[PostgresServer]:
    """Start a server whose files lie in the folder; stop and remove it after the block."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        server = PostgresServer.start(durable=True, settings=SETTINGS)
    finally:
        tempfile.tempdir = before
    try:
        yield server
    finally:
        server.discard()


class Tools:
    """The server's own client programs, measured as peers."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        programs = str(Path(server.bin("psql")).parent)
        self.env = {**plain_environment(), "PATH": f"{programs}:{os.environ['PATH']}"}

    def copy(self, database: str, script: str) -> Run:
        """Run COPY … TO STDOUT statements through psql, output thrown away."""
        (self.folder / "copy.sql").write_text(script)
        return pipeline(
            f"psql -qX -v ON_ERROR_STOP=1 -d {self._dsn(database)} -f {self._path('copy.sql')} > /dev/null",
            env=self.env,
        )

    def dump_zstd(self, database: str) -> Run:
        """`pg_dump | zstd -3` into a file."""
        return pipeline(f"pg_dump -d {self._dsn(database)} | zstd -q -3 -f -o {self._path('dump.zst')}", env=self.env)

    def dump_restic(self, database: str, *, program: str, env: dict[str, str]) -> Run:
        """`pg_dump | restic backup --stdin`."""
        return pipeline(
            f"pg_dump -d {self._dsn(database)} | {shlex.quote(program)} -q backup --stdin --stdin-filename dump.sql",
            env={**env, "PATH": self.env["PATH"]},
        )

    def dump_custom(self, database: str) -> Run:
        """`pg_dump -Fc` into a file."""
        return run(["pg_dump", "-Fc", "-f", self.folder / "dump.custom", "-d", self.server.dsn(database)], env=self.env)

    def restore_custom(self, database: str, *, jobs: int = 2) -> Run:
        """`pg_restore` of that file into an empty database, by two jobs or more or by itself."""
        self.server.create_database(database)
        return run(
            [
                "pg_restore",
                *([f"-j{jobs}"] if jobs > 1 else []),
                "-d",
                self.server.dsn(database),
                self.folder / "dump.custom",
            ],
            env=self.env,
        )

    def _dsn(self, database: str) -> str:
        return shlex.quote(self.server.dsn(database))

    def _path(self, name: str) -> str:
        return shlex.quote(str(self.folder / name))
