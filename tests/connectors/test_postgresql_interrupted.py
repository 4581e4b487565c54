"""Restores of PostgreSQL that are interrupted: the target is as before, or it is said that nobody knows yet."""

import threading
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from connectors._postgresql import committing
from connectors.postgresql import PostgresqlConnector
from engine.errors import CommitUnknown, StoreFull, TargetError, TargetFull
from engine.progress import NullProgress
from tests.connectors.postgres_changes import MemoryImage, apply, config_of, contents, preview, request_of, undo
from tests.connectors.postgres_views import execute, query, take
from tests.connectors.test_postgresql_faults import proxy
from tests.connectors.test_postgresql_preview import DAMAGE, SHOP

END = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'lastro' and datname = current_database()"


@pytest.mark.parametrize("phase", ["load", "apply", "check"])
@pytest.mark.parametrize("mode", ["full", "merge"])
def test_a_lost_connection_changes_nothing(postgres_database: str, phase: str, mode: str) -> None:
    """Goal: the target is as before. Method: the server ends our session as each phase begins."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, SHOP)
    view = take(config)
    execute(postgres_database, DAMAGE)
    before = contents(postgres_database)

    class Cut(NullProgress):
        def phase(self, name: str) -> None:
            if name == phase:
                assert query(postgres_database, END) == [(1,)]

    connector = PostgresqlConnector(config)
    with pytest.raises(TargetError), connector.prepare(view, request_of(mode=mode), Cut()):
        pytest.fail("nothing is prepared")
    assert contents(postgres_database) == before
    apply(config, view, mode=mode)
    assert contents(postgres_database) != before


@pytest.mark.parametrize("mode", ["full", "merge", "selective"])
def test_a_full_disk_changes_nothing(postgres_database: str, mode: str) -> None:
    """Goal: the server's disk_full amid the changes is typed, the target as before. Method: an ALWAYS trigger raises it late."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, SHOP)
    view = take(config)
    execute(postgres_database, DAMAGE + "create function full_disk() returns trigger language plpgsql as"
            " $$ begin raise 'could not extend file' using errcode = 'disk_full'; end $$;"
            "create trigger full_disk before insert on line for each row when (new.n = 2) execute function full_disk();"
            "alter table line enable always trigger full_disk")  # fmt: skip
    before = contents(postgres_database)
    with pytest.raises(TargetFull, match="extend"):
        apply(config, view, mode=mode, modules=("line",) if mode == "selective" else ())
    assert contents(postgres_database) == before


def dsn_as(dsn: str, user: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(dsn) | {"user": user}
    return psycopg.conninfo.make_conninfo("", **parts)


def test_a_full_store_changes_nothing(postgres_database: str) -> None:
    """Goal: no commit without its image. Method: the image cannot be written; the context is left by the error."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, SHOP)
    view = take(config)
    execute(postgres_database, DAMAGE)
    before = contents(postgres_database)

    class Full(MemoryImage):
        def rows(self, lines: Sequence[bytes]) -> None:
            raise StoreFull("no space left")

    with pytest.raises(StoreFull), PostgresqlConnector(config).prepare(view, request_of(), NullProgress()) as prepared:
        prepared.image(Full())
    assert contents(postgres_database) == before


def test_a_commit_that_nobody_can_tell_about(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a lost answer and no server to ask is said as such, and settled later. Method: a relay; another server answers."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, SHOP)
    view = take(config)
    execute(postgres_database, DAMAGE)
    cut = threading.Event()
    with proxy(postgres_database, cut=cut) as relayed:
        connector = PostgresqlConnector(config_of(relayed, "rows"))
        with connector.prepare(view, request_of(), NullProgress()) as prepared:
            # The relay answers new connections; the server's name for itself is what does not fit any more.
            token = dict(prepared.token)
            monkeypatch.setattr(committing, "transaction_token", lambda _: {**token, "system_identifier": "1"})
            with pytest.raises(CommitUnknown):
                prepared.commit()
    assert cut.is_set()
    assert PostgresqlConnector(config).settle(token) is True
    assert take(config).digests() == view.digests()


def test_a_role_without_power_over_triggers(postgres_database: str) -> None:
    """Goal: an owner without superuser rights restores, merges and undoes. Method: owner of the tables; then a cascade that would reach further."""
    execute(postgres_database, "create role plain login")
    try:
        execute(postgres_database, SHOP + "grant create, usage on schema public to plain;"
                + "".join(f"alter table {t} owner to plain;" for t in ("room", "guest", "stay", "line", "log")))  # fmt: skip
        config = config_of(dsn_as(postgres_database, "plain"), "rows")
        view = take(config)
        execute(postgres_database, DAMAGE)
        before = contents(postgres_database)
        for mode in ("full", "merge", "selective"):
            request: dict[str, Any] = {"mode": mode, "modules": ("stay", "line") if mode == "selective" else ()}
            said = preview(config, view, **request)
            done = apply(config, view, digest=said.digest, **request)
            assert done.report.neighbours is not None and done.report.neighbours["triggers_silent"] is False
            undo(config, done.image)
            assert contents(postgres_database) == before
        execute(
            postgres_database,
            "create table theirs(id int, stay int references stay on delete cascade); insert into theirs values (1, 100)",
        )
        with pytest.raises(TargetError):
            apply(config, view)
    finally:
        execute(postgres_database, "drop owned by plain cascade; drop role plain")
