"""Security labels of PostgreSQL objects: kept where their provider is loaded, said where it is not."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from connectors._postgresql.config import PostgresqlConfig
from tests.connectors.postgres_objects import anew, discard
from tests.connectors.postgres_views import execute, put_back, query, table_text, take
from tests.services.postgres import PostgresServer, installed, servers_for_session

LABELS = "select objtype, objname, provider, label from pg_seclabels order by 1, 2, 4"
TABLE = "create table note(id int primary key, v text); insert into note values (1, 'a'), (2, 'b'); create view seen as select v from note"
PROVIDER = """
#include "postgres.h"
#include "commands/seclabel.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
static void any_label(const ObjectAddress *object, const char *label) {}
void _PG_init(void) { register_label_provider("dummy", any_label); }
"""


@contextmanager
def _labelled(server: PostgresServer) -> Iterator[str]:
    """A database whose objects carry labels, made as a provider that is gone would have left them."""
    name = server.create_database()
    try:
        execute(server.dsn(name), TABLE)
        execute(
            server.dsn(name),
            """set allow_system_table_mods = on; insert into pg_seclabel values
            ('note'::regclass, 'pg_class'::regclass, 0, 'dummy', 'secret'), ('note'::regclass, 'pg_class'::regclass, 2, 'dummy', 'top'),
            ('seen'::regclass, 'pg_class'::regclass, 0, 'dummy', 'public')""",
        )
        yield server.dsn(name)
    finally:
        server.drop_database(name)


def test_labels_of_an_absent_provider_are_said_and_cost_nothing_else(postgres: PostgresServer) -> None:
    """Goal: a label that no server module answers for does not stop a recovery. Method: a copy, and a restore in place."""
    with _labelled(postgres) as dsn:
        view, rows, labels = take(PostgresqlConfig(dsn=dsn)), table_text(dsn, "note"), query(dsn, LABELS)
        assert len(labels) == 3
        try:
            restored = anew(postgres, dsn, view, "labels_copy")
            there = postgres.dsn("labels_copy")
            assert (table_text(there, "note"), query(there, LABELS)) == (rows, [])
            told = [warning for warning in restored.report.warnings if "SECURITY LABEL" in warning]
            assert len(told) == 2 and all('"dummy" is not loaded' in warning for warning in told)
        finally:
            discard(postgres, "labels_copy")
        execute(dsn, "delete from note where id = 1")
        put_back(PostgresqlConfig(dsn=dsn), view)
        assert (table_text(dsn, "note"), query(dsn, LABELS)) == (rows, labels)


@pytest.fixture
def provider() -> Iterator[Path]:
    """A label provider for the server whose headers are here, compiled; nothing loads it yet."""
    headers = installed()[18].parent / "include" / "server" if 18 in installed() else Path("none")
    compiler = shutil.which("cc")
    if compiler is None or not (headers / "postgres.h").is_file():
        pytest.skip("a C compiler and the headers of PostgreSQL 18 are not here")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        source, library = Path(folder) / "dummy.c", Path(folder) / "dummy.so"
        source.write_text(PROVIDER)
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-I", headers, "-o", library, source], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"the provider cannot be compiled here: {done.stderr[:200]}")
        library.chmod(0o755)
        yield library


def test_labels_come_back_with_their_provider(provider: Path) -> None:
    """Goal: labels are part of a database. Method: a real provider, compiled for the server and loaded in each session."""
    server = servers_for_session().get(18)
    with _labelled(server) as dsn:
        view, labels = take(PostgresqlConfig(dsn=dsn)), query(dsn, LABELS)
        execute(server.dsn(), f"alter role postgres set session_preload_libraries = '{provider}'")
        try:
            restored = anew(server, dsn, view, "labels_copy")
            assert restored.report.warnings == ()
            assert query(server.dsn("labels_copy"), LABELS) == labels
        finally:
            execute(server.dsn(), "alter role postgres reset session_preload_libraries")
            discard(server, "labels_copy")
