"""What goes wrong around a backup or a restore ends in a typed error, and nothing is half done."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import clean_message
from connectors.postgresql import PostgresqlConnector
from engine.errors import (
    SchemaMismatch,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceUnreachable,
    TargetError,
    UsageError,
)
from engine.progress import NullProgress
from tests.connectors.postgres_views import execute, put_back, query, table_text, take
from tests.services.postgres import PostgresServer

SCHEMA = """
create type mood as enum ('sad', 'ok');
create table owner(id int primary key, name text);
create table thing(id int primary key, tenant int references owner on delete cascade, v text, e mood default 'ok');
create table part(id int primary key, thing_id int references thing on delete cascade, v text);
insert into owner values (1, 'one'), (2, 'two');
insert into thing(id, tenant, v) select g, 1 + g % 2, repeat('v' || g, 20) from generate_series(1, 4000) g;
insert into part select g, g, 'p' from generate_series(1, 4000) g;
create index on thing(tenant); create index on part(thing_id);
"""
DAMAGE = (
    "delete from thing where tenant = 1 and id % 3 = 0; update part set v = 'x' where id % 5 = 1 and thing_id % 2 = 0"
)


@pytest.fixture
def things(postgres_database: str) -> str:
    execute(postgres_database, SCHEMA)
    return postgres_database


def config(dsn: str, **more: object) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="tenant", tenant_value="1", definitions=False, **more)  # type: ignore[arg-type]


# ---------------------------------------------------------------- settings and rights


@pytest.mark.parametrize(
    ("dsn", "kind", "hint"),
    [
        ("postgresql://postgres:S3cret@127.0.0.1:1/x", SourceUnreachable, "host or port"),
        ("postgresql://postgres:S3cret@{place}/not_there", SourceUnreachable, "database that exists"),
        ("postgresql://nobody_here:S3cret@{place}/postgres", SourceDenied, "user or password"),
        ("postgresql://postgres:S3cret@host.invalid/x", SourceUnreachable, "address"),
        ("no dsn with S3cret", UsageError, "postgresql://"),
    ],
)
def test_broken_dsn_is_explained_without_the_password(
    postgres: PostgresServer, dsn: str, kind: type[Exception], hint: str
) -> None:
    """Goal: "cannot connect: …, try …". Method: every way a DSN is wrong; the password never shows."""
    place = postgres.dsn().split("@")[1].split("/")[0]
    with pytest.raises(kind) as caught:
        PostgresqlConnector(PostgresqlConfig(dsn=dsn.format(place=place))).test()
    assert "S3cret" not in str(caught.value) + repr(caught.value)
    assert hint in caught.value.hint  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("password", "said", "shown"),
    [
        ("a", "a role may cancel a statement", "a role may cancel a statement"),
        ("a", "cannot use password=a, port=1", "cannot use password=***, port=1"),
        ("ab", "cannot use postgresql://ab:ab@host/ab", "cannot use postgresql://ab:***@host/ab"),
        ("S3cretS3cret", "says xS3cretS3crety", "says x***y"),
    ],
)
def test_a_password_is_masked_and_the_message_stays_whole(password: str, said: str, shown: str) -> None:
    """Goal: neither a password nor a riddle is printed. Method: passwords that are parts of words."""
    assert clean_message(psycopg.Error(said), f"postgresql://me:{password}@h/d") == shown


def test_role_without_rights(postgres: PostgresServer, things: str) -> None:
    """Goal: a role that may not read or is under a policy is told so. Method: a bare role, then one under row security."""
    role = postgres.create_role()
    name = things.rsplit("/", 1)[1]
    try:
        bare = config(postgres.dsn(name, user=role))
        with pytest.raises(SourceDenied, match=r"part|thing|owner"):
            PostgresqlConnector(bare).test()
        with pytest.raises(SourceDenied):
            take(bare)
        execute(
            things,
            f"grant select on all tables in schema public to {role}; alter table thing enable row level security",
        )
        with pytest.raises(SourceDenied, match="row"):
            PostgresqlConnector(bare).test()
        with pytest.raises(SourceDenied, match="row"):
            take(bare)
    finally:
        execute(things, f"drop owned by {role}")
        postgres.drop_role(role)


def test_restore_without_superuser(postgres: PostgresServer, things: str) -> None:
    """Goal: where triggers cannot be silenced the server's own foreign keys are obeyed. Method: a plain role restores."""
    role = postgres.create_role()
    try:
        execute(things, f"grant all on all tables in schema public to {role}")
        plain = config(postgres.dsn(things.rsplit("/", 1)[1], user=role))
        view, before = take(plain), {t: table_text(things, t) for t in ("thing", "part")}
        execute(
            things,
            DAMAGE + "; insert into thing values (9001, 1, 'new'); update part set thing_id = 9001 where id in (2, 4)",
        )
        restored = put_back(plain, view, prove=True)
        assert {t: table_text(things, t) for t in ("thing", "part")} == before
        assert restored.report.neighbours is not None and restored.report.neighbours["triggers_silent"] is False
        execute(things, "create table log(what text); create function note() returns trigger language plpgsql security definer as"
                " $$ begin insert into public.log values ('x'); return null; end $$;"
                "create trigger note after insert on thing execute function note(); delete from thing where id = 2")  # fmt: skip
        with pytest.raises(TargetError, match="log"):
            put_back(plain, view)
        assert query(things, "select count(*) from thing where id = 2") == [(0,)]
    finally:
        execute(things, f"drop owned by {role}")
        postgres.drop_role(role)


def test_code_of_the_database_finds_its_names(postgres: PostgresServer, things: str) -> None:
    """Goal: triggers that cannot be silenced work as for the application. Method: unqualified names, with and without rights."""
    role = postgres.create_role()
    try:
        execute(things, f"grant all on all tables in schema public to {role}")
        execute(
            things,
            """create table allowed(id int primary key); insert into allowed select distinct id from thing;
            create function known(int) returns bool language sql as 'select exists (select from allowed where id = $1)';
            create function look() returns trigger language plpgsql as $$ begin
                if not known(new.id) then raise 'not allowed'; end if; return new; end $$;
            create constraint trigger late after insert or update on thing deferrable initially deferred
                for each row execute function look();
            create trigger at_once before insert or update on thing for each row execute function look()""",
        )
        execute(things, f"grant select on allowed to {role}")
        plain, owner = config(postgres.dsn(things.rsplit("/", 1)[1], user=role)), config(things)
        view, before = take(plain), table_text(things, "thing")
        for way in (plain, owner):
            execute(things, "delete from part; delete from thing where id % 2 = 0")
            put_back(way, view)
            assert table_text(things, "thing") == before
        # Constraints cannot be silenced by anybody, and a superuser's statements keep to the pinned path.
        execute(things, "alter table thing add constraint allowed check (known(id)) not valid; delete from part")
        execute(things, "delete from thing where id = 2")
        with pytest.raises(SchemaMismatch, match="allowed") as refused:
            put_back(owner, view)
        assert "names it without its schema" in refused.value.hint and "ALTER FUNCTION" in refused.value.hint
        assert query(things, "select count(*) from thing where id = 2") == [(0,)]
        put_back(plain, view)
        assert table_text(things, "thing") == before
    finally:
        execute(things, f"drop owned by {role}")
        postgres.drop_role(role)


@pytest.mark.parametrize("may_silence", [False, True])
def test_constraints_and_domains_find_their_names(postgres: PostgresServer, things: str, may_silence: bool) -> None:
    """Goal: code that nobody can silence runs as for the application, but for a superuser. Method: a check, a domain, an index."""
    if may_silence and postgres.major < 15:
        pytest.skip("PostgreSQL 14 gives the right to silence triggers to superusers alone")
    role = postgres.create_role()
    try:
        execute(
            things,
            f"""create table allowed(v text); insert into allowed values ('a'), ('b');
            create function known(text) returns bool stable language sql as 'select exists (select from allowed where v = $1)';
            create function folded(text) returns text immutable language plpgsql as 'begin perform from allowed; return upper($1); end';
            create domain word as text check (known(value)); create table picky(id int primary key, d word, c text check (known(c)));
            create index on picky (folded(c)); insert into picky values (1, 'a', 'b'), (2, 'b', 'a');
            grant all on all tables in schema public to {role}""",
        )
        if may_silence:
            execute(things, f"grant set on parameter session_replication_role to {role}")
        whole: dict[str, Any] = {"layout": "schema", "schema": "public", "include": ("picky",), "definitions": False}
        plain = PostgresqlConfig(dsn=postgres.dsn(things.rsplit("/", 1)[1], user=role), **whole)
        view, before = take(plain), table_text(things, "picky")
        for damage in ("delete from picky", "delete from picky where id = 1; update picky set d = 'a', c = 'b'"):
            execute(things, damage)
            put_back(plain, view)
            assert table_text(things, "picky") == before
        execute(things, "delete from picky")
        with pytest.raises(SchemaMismatch, match="allowed"):
            put_back(PostgresqlConfig(dsn=things, **whole), view)
        assert table_text(things, "picky") == []
    finally:
        execute(things, f"drop owned by {role}")
        if may_silence:
            execute(things, f"revoke set on parameter session_replication_role from {role}")
        postgres.drop_role(role)


@pytest.mark.parametrize(
    "drift",
    [
        "create domain short as text check (length(value) < 3); alter table thing alter v type short using left(v, 2)",
        "alter domain word add constraint brief check (length(value) < 3) not valid",
    ],
)
def test_a_domain_that_refuses_is_named_with_its_table(postgres_database: str, drift: str) -> None:
    """Goal: the operator knows where to look. Method: a column becomes a domain, or its domain stricter, than backed-up values are."""
    execute(postgres_database, "create domain word as text; create table thing(id int primary key, tenant int, v word);"
            "insert into thing values (1, 1, 'long enough')")  # fmt: skip
    plain = config(postgres_database)
    view = take(plain)
    execute(postgres_database, drift + "; delete from thing")
    with pytest.raises(SchemaMismatch, match=r"public\.thing: value for domain .* violates check constraint"):
        put_back(plain, view)


# ---------------------------------------------------------------- while a backup reads


def test_schema_changed_during_the_backup(things: str) -> None:
    """Goal: never a mixture. Method: rename an enum label between two parts; tables themselves are locked."""
    with PostgresqlConnector(config(things)).open(NullProgress()) as reader:
        for part in reader.tables():
            assert sum(len(batch) for batch in part.rows()) > 0
        with pytest.raises(psycopg.errors.LockNotAvailable):
            execute(things, "set lock_timeout = '100ms'; alter table thing add column late int")
        execute(things, "alter type mood rename value 'ok' to 'fine'")
        with pytest.raises(SourceChanged, match="thing"):
            reader.finish()


def test_snapshot_that_is_too_old(things: str) -> None:
    """Goal: a backup does not hold back vacuum for ever. Method: an age of zero seconds."""
    with (
        PostgresqlConnector(config(things, snapshot_age_seconds_max=0)).open(NullProgress()) as reader,
        pytest.raises(SourceError, match="snapshot"),
    ):
        list(reader.tables()[0].rows())


def test_server_restarts_in_mid_read() -> None:
    """Goal: a typed, retryable error; the next backup is whole. Method: crash the server between two batches."""
    server = PostgresServer.start()
    try:
        execute(server.dsn(), SCHEMA)
        execute(
            server.dsn(),
            "insert into thing select g, 1, repeat('y', 900) from generate_series(5000, 60000) g",
        )
        first = take(config(server.dsn()))
        with PostgresqlConnector(config(server.dsn())).open(NullProgress()) as reader:
            rows = next(part for part in reader.tables() if part.name == "public.thing").rows()
            next(rows)
            server.restart(how=signal.SIGQUIT)
            with pytest.raises(SourceUnreachable):
                list(rows)
        second = take(config(server.dsn()))
        assert second.digests() == first.digests()
        domains = [{table.version_domain for table in view.tables} for view in (first, second)]
        assert domains[0] != domains[1], "after a restart contents are compared, not versions"
    finally:
        server.discard()


# ---------------------------------------------------------------- while a restore writes

KILLED = """
import sys
sys.path[:0] = ["platform", "."]
from tests.connectors.postgres_views import put_back, take
from tests.connectors.test_postgresql_faults import DAMAGE, config, execute
view = take(config(sys.argv[1]))
execute(sys.argv[1], DAMAGE)
print("damaged", flush=True)
put_back(config(sys.argv[1]), view)
"""


@pytest.mark.parametrize("label", ["pg.restore.loaded", "pg.restore.applied", "pg.restore.committed"])
def test_killed_restore_is_wholly_old_or_new(things: str, label: str) -> None:
    """Goal: invariant E. Method: SIGKILL at each labelled point; the rows are the damaged or the restored ones."""
    view = take(config(things))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, things],
        cwd=root,
        env={**os.environ, "LASTRO_KILL_AT": label},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL and "damaged" in done.stdout, done.stderr
    deadline = time.monotonic() + 20
    while query(
        things,
        "select count(*) from pg_stat_activity where application_name = 'lastro' and datname = current_database()",
    ) != [(0,)]:
        assert time.monotonic() < deadline, "the server has not noticed the dead client"
        time.sleep(0.05)
    restored = take(config(things)).digests() == view.digests()
    assert restored == (label == "pg.restore.committed")
    put_back(config(things), view)
    assert take(config(things)).digests() == view.digests()


def test_neighbours_go_on_writing(things: str) -> None:
    """Goal: a restore takes no lock that stops others, and their writes survive it. Method: writers during restores."""
    view = take(config(things))
    stop, errors, counts = threading.Event(), [], [0]

    def write() -> None:
        with psycopg.connect(things, autocommit=True) as session:
            session.execute("set statement_timeout = '5s'")
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    session.execute("update thing set v = %s where id = %s", (f"w{number}", 1 + 2 * (number % 2000)))
                    session.execute("insert into thing(id, tenant, v) values (%s, 2, 'new')", (100_000 + number,))
                except psycopg.Error as error:
                    errors.append(error)
                counts[0] = number

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for prove in (False, True, False):
            execute(things, DAMAGE)
            put_back(config(things), view, prove=prove)
            assert take(config(things)).digests() == view.digests()
    finally:
        stop.set()
        writer.join()
    assert errors == []
    assert query(things, "select count(*) from thing where id > 100000") == [(counts[0],)]


def test_tenant_that_writes_during_the_restore(things: str) -> None:
    """Goal: concurrent writes of the tenant itself are tried again, then refused. Method: a row locked and changed."""
    view = take(config(things))
    execute(things, DAMAGE)
    with psycopg.connect(things) as session:
        session.execute("update thing set v = 'held' where id = 2")
        session.execute("update part set v = 'held' where id = 16")
        releaser = threading.Timer(0.5, session.commit)
        releaser.start()
        put_back(config(things), view)
        releaser.join()
    assert take(config(things)).digests() == view.digests()
    execute(things, DAMAGE)
    with psycopg.connect(things) as session:
        session.execute("update part set v = 'held' where id = 16")
        before = table_text(things, "thing")
        with pytest.raises(TargetError, match="lock"):
            put_back(config(things, lock_timeout_seconds=1), view)
    assert table_text(things, "thing") == before


@contextmanager
def proxy(dsn: str, *, cut: threading.Event) -> Iterator[str]:
    """A relay to the server that drops the connection as soon as a COMMIT has been sent, and never its answer."""
    place = dsn.split("@")[1].split("/", maxsplit=1)[0]
    host, port = place.split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = [listener]

    def pump(source: socket.socket, sink: socket.socket, other: socket.socket | None) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if other is not None and b"COMMIT\0" in data and not cut.is_set():
                    cut.set()
                    source.shutdown(socket.SHUT_RDWR)
                    return
        except OSError:
            pass
        finally:
            for end in (source, sink) if other is None or not cut.is_set() else (source,):
                end.close()

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((host, int(port)))
            sockets.extend((client, server))
            threading.Thread(target=pump, args=(client, server, client), daemon=True).start()
            threading.Thread(target=pump, args=(server, client, None), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield dsn.replace(place, f"127.0.0.1:{listener.getsockname()[1]}")
    finally:
        for each in sockets:
            each.close()


def test_lost_answer_to_the_commit(things: str) -> None:
    """Goal: a lost COMMIT answer is settled by asking the server. Method: a relay that drops exactly that answer."""
    view = take(config(things))
    execute(things, DAMAGE)
    cut = threading.Event()
    with proxy(things, cut=cut) as relayed:
        put_back(config(relayed), view)
    assert cut.is_set()
    assert take(config(things)).digests() == view.digests()


def test_sequences_never_go_back(postgres_database: str) -> None:
    """Goal: no key is given twice. Method: use numbers after the backup, restore; then a sequence that was set back."""
    execute(
        postgres_database,
        "create table numbered(id serial primary key, tenant int); insert into numbered(tenant) select 1 from generate_series(1, 10)",
    )
    view = take(config(postgres_database))
    execute(postgres_database, "insert into numbered(tenant) select 2 from generate_series(1, 5)")
    put_back(config(postgres_database), view)
    assert query(postgres_database, "select nextval('numbered_id_seq')") == [(16,)]
    execute(postgres_database, "delete from numbered; select setval('numbered_id_seq', 3)")
    put_back(config(postgres_database), view)
    assert query(postgres_database, "select nextval('numbered_id_seq')") == [(11,)]
