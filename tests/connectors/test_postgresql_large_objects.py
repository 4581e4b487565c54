"""Large objects in place: exactly what the backup holds, undone to exactly what was there, page for page and right for right."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import psycopg
import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import StalePlan, TargetDenied, TargetError
from engine.progress import NullProgress
from tests.connectors.postgres_changes import MemoryImage, apply, preview, preview_undo, request_of, undo
from tests.connectors.postgres_views import execute, put_back, query, take
from tests.services.postgres import PostgresServer

PAGES = "select loid::int, pageno, encode(data, 'hex') from pg_largeobject order by 1, 2"
ATTRIBUTES = """
select m.oid::int, lomowner::regrole::text, array(select x::text from aclexplode(coalesce(lomacl, acldefault('L', lomowner))) x order by 1),
       obj_description(m.oid, 'pg_largeobject'), array(select provider || label from pg_seclabel l where objoid = m.oid order by 1)
  from pg_largeobject_metadata m order by 1"""
STRAY = """
select (select count(*) from pg_largeobject l where not exists (select from pg_largeobject_metadata m where m.oid = l.loid)),
       (select count(*) from pg_description d where classoid = 'pg_largeobject'::regclass
           and not exists (select from pg_largeobject_metadata m where m.oid = objoid)),
       (select count(*) from pg_shdepend where classid = 'pg_largeobject'::regclass
           and dbid = (select oid from pg_database where datname = current_database())
           and not exists (select from pg_largeobject_metadata m where m.oid = objid))"""
CUT = "select (select lo_truncate64(f.fd, {1}) + lo_close(f.fd) from (select lo_open({0}, 131072) as fd offset 0) f)"

MADE = f"""
select lo_from_bytea(100, repeat('one', 2000)::bytea), lo_create(101), lo_from_bytea(104, repeat('x', 6000)::bytea),
       lo_from_bytea(105, 'given'), lo_from_bytea(106, 'same'), lo_from_bytea(107, 'nobody'), lo_from_bytea(108, 'dies'),
       lo_create(102), lo_create(103), lo_create(109), lo_from_bytea(110, repeat('y', 9000)::bytea), lo_from_bytea(111, '');
select lo_put(102, 3000000000, 'end'), lo_put(102, 0, 'begin'), lo_put(103, 10300, 'late'), lo_put(109, 50, 'first page');
{CUT.format(104, 4096)};
comment on large object 100 is 'it''s "one"'; comment on large object 106 is 'was';
alter large object 105 owner to lo_app; alter large object 108 owner to lo_app; alter large object 109 owner to lo_app;
set role lo_app; grant select on large object 105 to lo_reader with grant option; grant select, update on large object 108 to public;
set role lo_reader; grant select on large object 105 to "LO other"; reset role;
revoke all on large object 107 from current_user; grant select on large object 106 to lo_reader, "LO other";
"""
HURT = f"""
select lo_unlink(108), lo_put(100, 2050, 'XX'), lo_from_bytea(200, 'new'), lo_from_bytea(201, repeat('n', 5000)::bytea), lo_create(202),
       lo_put(101, 100, 'no longer empty'), lo_put(102, 1000000000, 'middle'), lo_put(103, 0, 'early'), lo_put(104, 4096, 'tail'),
       lo_unlink(109), lo_put(110, 20000, 'longer');
{CUT.format(110, 3000)}; select lo_from_bytea(109, 'somebody else''s'), lo_put(111, 0, 'something');
comment on large object 100 is null; comment on large object 106 is 'is'; comment on large object 200 is 'new';
alter large object 201 owner to lo_app; grant select on large object 201 to lo_reader;
revoke all on large object 105 from lo_reader cascade; alter large object 106 owner to "LO other"; grant all on large object 107 to public;
"""


@dataclass
class Place:
    """A database with large objects of several roles."""

    server: PostgresServer
    dsn: str

    @property
    def config(self) -> PostgresqlConfig:
        return PostgresqlConfig(dsn=self.dsn, definitions=False)

    def state(self) -> tuple[list[object], list[object]]:
        assert query(self.dsn, STRAY) == [(0, 0, 0)]
        return [*query(self.dsn, PAGES)], [*query(self.dsn, ATTRIBUTES)]


@contextmanager
def place_on(server: PostgresServer) -> Iterator[Place]:
    name = server.create_database()
    roles = ("lo_app", "lo_reader", "LO other")
    for role in roles:
        server.create_role(role, options="LOGIN")
    try:
        yield Place(server, server.dsn(name))
    finally:
        server.drop_database(name)
        for role in roles:
            server.drop_role(role)


def test_undo_is_exact(postgres_each: PostgresServer) -> None:
    """Goal: pages, owners, rights, comments as they were, on every major. Method: every sort of change, there and back twice."""
    with place_on(postgres_each) as place:
        execute(place.dsn, "create table t(id int primary key); insert into t values (1), (2)")
        execute(place.dsn, MADE)
        if postgres_each.major >= 18:  # What is made anew is given to somebody at once.
            execute(place.dsn, "alter default privileges grant select on large objects to lo_reader")
        view, whole = take(place.config), place.state()
        execute(place.dsn, HURT + "; delete from t where id = 1")
        hurt = place.state()
        said = preview(place.config, view)
        done = apply(place.config, view, digest=said.digest)
        assert (done.report.tables, done.warnings) == (said.tables, [])
        assert place.state() == whole
        said = preview_undo(place.config, done.image)
        (large,) = [change for change in said.tables if change.name == "large objects"]
        assert (large.insert, large.update, large.delete, large.conflicts, large.imaged) == (3, 11, 1, 0, True)
        back = undo(place.config, done.image)
        assert (back.report.tables, back.report.digest, back.warnings) == (said.tables, said.digest, [])
        assert place.state() == hurt
        again = undo(place.config, back.image)
        assert place.state() == whole
        undo(place.config, again.image)
        assert (place.state(), query(place.dsn, "select id from t")) == (hurt, [(2,)])


def _random_object(rng: random.Random, loid: int) -> list[str]:
    """Statements that write, cut and write again wherever pages begin and end."""
    made = [f"select lo_create({loid})"]
    for _ in range(rng.randint(0, 6)):
        at = rng.choice((0, 1, 2047, 2048, 2049, 4096, 6000, 8192, 10240)) + rng.choice((0, 0, 1, 2048))
        if rng.random() < 0.3:
            made.append(CUT.format(loid, at))
        else:
            size, letter = rng.choice((1, 3, 2047, 2048, 4096, 5000)), rng.choice("abc")
            made.append(f"select lo_put({loid}, {at}, repeat('{letter}', {size})::bytea)")
    return made


def test_random_pages_come_back(postgres_database: str, rng: random.Random) -> None:
    """Goal: page for page, holes and empty pages included. Method: random objects become other random ones, restore, undo."""
    place = Place(PostgresServer.external(postgres_database), postgres_database)
    execute(place.dsn, "; ".join(sql for loid in range(1000, 1150) for sql in _random_object(rng, loid)))
    view, whole = take(place.config), place.state()
    gone = "select count(lo_unlink(g)) from generate_series(1000, 1139) g"
    execute(place.dsn, "; ".join([gone, *(sql for loid in range(1010, 1140) for sql in _random_object(rng, loid))]))
    hurt = place.state()
    done = apply(place.config, view)
    assert place.state() == whole
    undo(place.config, done.image)
    assert place.state() == hurt


SINCE = {
    "written to": ("select lo_put(100, 0, 'since')", "100"),
    "deleted": ("select lo_unlink(100)", "100"),
    "given away": ("alter large object 106 owner to lo_app", "106"),
    "a new one of that number": ("select lo_unlink(101), lo_from_bytea(101, 'reused')", "101"),
    "again one that the restore deleted": ("select lo_from_bytea(200, 'reused')", "200"),
    "gone, and only its rights were restored": ("select lo_unlink(106)", "106"),
}


@pytest.mark.parametrize("what", SINCE)
def test_objects_that_changed_since_are_asked_about(postgres: PostgresServer, what: str) -> None:
    """Goal: newer work is not lost silently. Method: change one after the restore; undo, preview, approve, undo that."""
    with place_on(postgres) as place:
        execute(place.dsn, MADE)
        view = take(place.config)
        execute(place.dsn, HURT)
        hurt = place.state()
        done = apply(place.config, view)
        sql, number = SINCE[what]
        execute(place.dsn, sql)
        since = place.state()
        with pytest.raises(StalePlan, match=rf"large objects \({number}\) that the restore wrote"):
            undo(place.config, done.image)
        said = preview_undo(place.config, done.image)
        (large,) = said.tables
        assert large.conflicts == 1
        first = said.samples["large objects"][0]
        assert (first.change, first.key) == ("conflict", {"oid": number})
        assert place.state() == since
        back = undo(place.config, done.image, digest=said.digest)
        if what.startswith("gone"):
            assert large.withheld == 1 and "only its attributes" in first.because
            assert place.state() == tuple([row for row in part if row[0] != 106] for part in hurt)  # type: ignore[index]
        else:
            assert place.state() == hurt
        undo(place.config, back.image)
        assert place.state() == since


def test_an_undo_leaves_other_objects_alone(postgres: PostgresServer) -> None:
    """Goal: only what the restore touched. Method: restore, make and change others, undo without being asked."""
    with place_on(postgres) as place:
        execute(place.dsn, MADE)
        view = take(place.config)
        execute(place.dsn, "select lo_put(100, 0, 'Z')")
        done = apply(place.config, view)
        execute(place.dsn, "select lo_from_bytea(300, 'theirs'), lo_put(105, 0, 'theirs')")
        undo(place.config, done.image)
        assert query(place.dsn, "select substr(lo_get(100), 1, 1), lo_get(300), lo_get(105)") == [
            (b"Z", b"theirs", b"theirs")
        ]


def test_an_owner_without_superuser_rights(postgres: PostgresServer) -> None:
    """Goal: its own objects come back, others' are refused by name. Method: SELECT on pg_largeobject alone is granted."""
    with place_on(postgres) as place:
        execute(place.dsn, "grant select on pg_largeobject to lo_app; grant all on schema public to lo_app")
        mine = place.dsn.replace("postgres@", "lo_app@")
        config = PostgresqlConfig(dsn=mine, definitions=False)
        execute(
            mine, "create table t(id int primary key); select lo_from_bytea(1, repeat('a', 5000)::bytea), lo_create(2)"
        )
        view, whole = take(config), place.state()
        execute(
            mine,
            f"{CUT.format(1, 100)}; select lo_unlink(2), lo_from_bytea(3, 'new'); grant select on large object 3 to public",
        )
        hurt = place.state()
        done = apply(config, view)
        assert place.state() == whole
        undo(config, done.image)
        assert place.state() == hurt
        execute(place.dsn, "select lo_from_bytea(4, 'the server''s')")
        before = place.state()
        with pytest.raises(TargetDenied, match="4 of postgres"):
            preview(config, view)
        with pytest.raises(TargetDenied, match="4 of postgres"):
            apply(config, view)
        execute(place.dsn, "revoke select on pg_largeobject from lo_app")
        with pytest.raises(TargetDenied, match="may not read the database's large objects"):
            undo(config, done.image)
        assert place.state() == before


def test_triggers_that_unlink_are_no_obstacle(postgres: PostgresServer) -> None:
    """Goal: the outcome is the backup's. Method: an owner's own trigger unlinks what a deleted row names, as lo_manage does."""
    with place_on(postgres) as place:
        execute(place.dsn, "grant select on pg_largeobject to lo_app; grant all on schema public to lo_app")
        mine = place.dsn.replace("postgres@", "lo_app@")
        config = PostgresqlConfig(dsn=mine, definitions=False)
        execute(mine, "create table t(id int primary key, o oid); create function unlink() returns trigger language plpgsql as"
                " $$ begin perform lo_unlink(old.o); return old; end $$;"
                "create trigger unlink before delete or update on t for each row execute function unlink()")  # fmt: skip
        execute(mine, "insert into t values (1, lo_from_bytea(1, 'one')), (2, lo_from_bytea(2, 'two'))")
        view, whole = take(config), place.state()
        execute(mine, "insert into t values (3, lo_from_bytea(3, 'three'))")
        hurt = place.state()
        done = apply(config, view)
        assert place.state() == whole
        undo(config, done.image)
        assert place.state() == hurt


def test_roles_and_labels_that_are_gone_are_said(postgres: PostgresServer) -> None:
    """Goal: content first; what cannot be kept is said once. Method: two objects of a role that is dropped, a label of no provider."""
    with place_on(postgres) as place:
        postgres.create_role("lo_leaver", options="NOLOGIN")
        execute(place.dsn, "select lo_from_bytea(1, 'a'), lo_from_bytea(2, 'b'), lo_from_bytea(3, 'c');"
                "alter large object 1 owner to lo_leaver; alter large object 2 owner to lo_leaver;"
                "insert into pg_seclabel values (3, 'pg_largeobject'::regclass, 0, 'absent', 'secret')")  # fmt: skip
        view = take(place.config)
        execute(place.dsn, "select lo_unlink(1), lo_unlink(2), lo_unlink(3)")
        postgres.drop_role("lo_leaver")
        done = apply(place.config, view)
        assert query(place.dsn, "select lo_get(1), lo_get(2), lo_get(3)") == [(b"a", b"b", b"c")]
        owner, label = [message for _, message in done.warnings]
        assert owner.startswith("the owner lo_leaver of large objects 1, 2 is not kept")
        assert label.startswith("a security label of large object 3 is not kept")
        undo(place.config, done.image)
        assert place.state() == ([], [])


def test_more_objects_than_locks(postgres: PostgresServer) -> None:
    """Goal: thousands of them come and go in one transaction. Method: more than may take a lock each, with an owner and a comment."""
    with place_on(postgres) as place:
        made = "select lo_from_bytea(g, convert_to('o' || g, 'UTF8')) from generate_series(10001, 15000) g"
        execute(place.dsn, f"set role lo_app; {made}; reset role; comment on large object 10001 is 'first'")
        view, whole = take(place.config), place.state()
        for first in range(10001, 15001, 1000):
            execute(place.dsn, f"select count(lo_unlink(g)) from generate_series({first}, {first + 999}) g")
        done = apply(place.config, view)
        assert place.state() == whole
        back = undo(place.config, done.image)
        assert place.state() == ([], [])
        undo(place.config, back.image)
        assert place.state() == whole


def test_many_objects_are_not_deleted_without_locks(postgres: PostgresServer) -> None:
    """Goal: the lock table is everybody's; an owner that would fill it is refused. Method: more than a quarter of it."""
    with place_on(postgres) as place:
        execute(place.dsn, "grant select on pg_largeobject to lo_app; grant all on schema public to lo_app")
        mine = place.dsn.replace("postgres@", "lo_app@")
        config = PostgresqlConfig(dsn=mine, definitions=False)
        execute(mine, "create table t(id int primary key)")
        view = take(config)
        execute(mine, "select count(lo_create(g)) from generate_series(1, 3000) g")
        with pytest.raises(TargetError, match="3000 large objects are to be deleted at once") as refused:
            apply(config, view)
        assert "max_locks_per_transaction" in refused.value.hint
        assert query(mine, "select count(*) from pg_largeobject_metadata") == [(3000,)]


def test_writers_meanwhile_are_not_overwritten(postgres: PostgresServer) -> None:
    """Goal: no mixture of two writers. Method: write to a restored object after the checks, before the commit."""
    with place_on(postgres) as place:
        execute(place.dsn, "select lo_from_bytea(1, repeat('a', 5000)::bytea)")
        view = take(place.config)
        execute(place.dsn, "select lo_put(1, 0, 'B')")
        connector = PostgresqlConnector(place.config)
        with connector.prepare(cast(Any, view), request_of(), NullProgress()) as prepared:
            prepared.image(MemoryImage())
            execute(place.dsn, "select lo_put(1, 8000, 'theirs')")
            with pytest.raises(TargetError, match="written to by somebody else"):
                prepared.commit()
        assert query(place.dsn, "select substr(lo_get(1), 1, 1), substr(lo_get(1), 8001)") == [(b"B", b"theirs")]
        with connector.prepare(cast(Any, view), request_of(), NullProgress()) as prepared:
            prepared.image(MemoryImage())
            with psycopg.connect(place.dsn) as theirs, pytest.raises(psycopg.errors.LockNotAvailable):
                theirs.execute("set lock_timeout = '100ms'; select lo_put(1, 2048, 'theirs')")
            prepared.commit()
        assert query(place.dsn, "select lo_get(1)") == [(b"a" * 5000,)]


def test_an_object_made_meanwhile_is_met_by_another_attempt(postgres: PostgresServer) -> None:
    """Goal: the outcome is the backup's. Method: somebody makes the lost object, and unlinks one that stays, after the comparison."""
    with place_on(postgres) as place:
        execute(place.dsn, "select lo_from_bytea(1, 'one'), lo_from_bytea(2, 'two')")
        view, whole = take(place.config), place.state()
        execute(place.dsn, "select lo_unlink(1)")
        meanwhile = ["select lo_unlink(2)", "select lo_from_bytea(1, 'theirs')"]

        class Busy(NullProgress):
            def phase(self, name: str) -> None:
                if name == "apply" and meanwhile:
                    execute(place.dsn, meanwhile.pop())

        with PostgresqlConnector(place.config).prepare(cast(Any, view), request_of(), Busy()) as prepared:
            prepared.commit()
        assert (place.state(), meanwhile) == (whole, [])


def test_documents_of_older_backups_are_read(postgres: PostgresServer) -> None:
    """Goal: rights from a document without grantors. Method: the document as older versions wrote it."""
    with place_on(postgres) as place:
        execute(place.dsn, MADE)
        view = take(place.config)
        old = (
            b'[{"oid": 100, "owner": "postgres", "grants": [], "comment": "c"}, {"oid": 105, "owner": "lo_app", "grants":'
            b' ["[\\"lo_app\\", \\"SELECT\\", false]", "[\\"lo_app\\", \\"UPDATE\\", false]", "[\\"public\\", \\"SELECT\\", false]"],'
            b' "comment": null}]'
        )
        view.documents["large-objects.json"].data = old
        apply(place.config, view)
        found = query(place.dsn, "select oid::int, lomowner::regrole::text, lomacl::text, obj_description(oid, 'pg_largeobject')"
                      " from pg_largeobject_metadata order by 1")  # fmt: skip
        assert found == [(100, "postgres", None, "c"), (105, "lo_app", "{lo_app=rw/lo_app,=r/lo_app}", None)]


@pytest.mark.parametrize(
    ("modules", "objects", "rows"), [(("t",), [], 1), (("large objects",), [(1, b"a"), (2, b"")], 0)]
)
def test_a_part_of_a_backup_elsewhere(
    postgres: PostgresServer, modules: tuple[str, ...], objects: list[tuple[int, bytes]], rows: int
) -> None:
    """Goal: whole large objects or none, and the preview says which. Method: selective into a new database, with and without them."""
    with place_on(postgres) as place:
        execute(
            place.dsn,
            "create table t(id int primary key); insert into t values (1); select lo_from_bytea(1, 'a'), lo_create(2)",
        )
        config = PostgresqlConfig(dsn=place.dsn)
        view, there = take(config), postgres.dsn("lo_elsewhere")
        said = preview(config, view, target={"dsn": there}, mode="selective", modules=modules)
        try:
            done = put_back(config, view, target={"dsn": there}, mode="selective", modules=modules)
            assert query(there, "select oid::int, lo_get(oid) from pg_largeobject_metadata order by 1") == objects
            assert query(there, "select count(*) from t") == [(rows,)]
            counts = {change.name: change.insert for change in done.report.tables}
            assert counts.get("large objects", 0) == len(objects)
            assert counts == {change.name: change.insert for change in said.tables}
        finally:
            postgres.drop_database("lo_elsewhere")
