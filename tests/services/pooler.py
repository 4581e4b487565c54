"""A real pgbouncer for tests, in front of a test server: started on loopback, ended with the test process."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from tests.services import cached_programs
from tests.services.postgres import PostgresServer, account, die_with_parent, free_port

START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0

CONFIG = """
[databases]
* = host=127.0.0.1 port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 100
ignore_startup_parameters = extra_float_digits
"""


class Pooler:
    """One running pgbouncer; every client becomes the server's superuser."""

    def __init__(self, server: PostgresServer, *, mode: str, size: int) -> None:
        found = cached_programs.pooler()
        if found is None:
            pytest.skip("no pgbouncer: run `make services`")
        program, more = found
        self._server = server
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="lastro-pool-"))
        server_port = psycopg.conninfo.conninfo_to_dict(server.dsn())["port"]
        config = self.folder / "pgbouncer.ini"
        text = CONFIG.format(server_port=server_port, port=self.port, mode=mode, size=size)
        config.write_text(text.replace("* = host", "* = user=postgres host"))
        self.folder.chmod(0o755)
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [program, str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), **more}, start_new_session=True, **account(),
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that could deadlock
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < until and self._process.poll() is None:
            try:
                psycopg.connect(self.dsn("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        said = (self.folder / "log").read_text()[-2000:]
        self.discard()
        raise RuntimeError(f"pgbouncer does not start: {said}")

    def dsn(self, database: str) -> str:
        """A connection URL through the pooler."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def discard(self) -> None:
        """Stop it and remove its folder."""
        self._process.kill()
        self._process.wait(STOP_SECONDS_MAX)
        shutil.rmtree(self.folder, ignore_errors=True)
