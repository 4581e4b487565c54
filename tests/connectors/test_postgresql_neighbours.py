"""What a restore must not do to anybody else's rows, where PostgreSQL itself would not notice."""

import psycopg
import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import SchemaMismatch, TargetError, TargetOccupied
from engine.ports import RestoreRequest
from engine.progress import NullProgress
from tests.connectors.postgres_views import execute, put_back, query, table_text, take
from tests.services.postgres import PostgresServer

SHARED = """
create table tenant(id int primary key);
create table note(id int primary key, tenant int references tenant, v text);
insert into tenant values (1), (2);
"""


def rows_of(dsn: str, **more: object) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="tenant", tenant_value="1", definitions=False, **more)  # type: ignore[arg-type]


def schema_of(dsn: str, name: str) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="schema", schema=name)


@pytest.mark.parametrize(
    "constraint",
    [
        "unique (code) deferrable",
        "unique (code) deferrable initially deferred",
        "exclude using btree (code with =) deferrable",
    ],
)
def test_deferrable_constraints_hold(postgres_database: str, constraint: str) -> None:
    """Goal: silenced triggers do not silence a deferrable constraint. Method: another tenant takes the value."""
    execute(postgres_database, SHARED + f"create table door(id int primary key, tenant int, code text, {constraint});"
            "insert into door values (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c'), (5, 1, null), (6, 2, null)")  # fmt: skip
    view = take(rows_of(postgres_database))
    execute(postgres_database, "delete from door where id = 1; insert into door values (4, 2, 'a')")
    live = table_text(postgres_database, "door")
    with pytest.raises(TargetError, match="door"):
        put_back(rows_of(postgres_database), view)
    assert table_text(postgres_database, "door") == live
    execute(postgres_database, "delete from door where id = 4; update door set code = 'x' where id = 2;"
            "update door set code = 'a' where id = 3; update door set code = 'c' where id = 3")  # fmt: skip
    put_back(rows_of(postgres_database), view, prove=True)
    assert table_text(postgres_database, "door", "tenant = 1") == ["(1,1,a)", "(2,1,b)", "(5,1,)"]


def test_references_from_other_schemas_hold(postgres_database: str) -> None:
    """Goal: a row that another schema refers to is not deleted. Method: foreign keys across schemas, both ways."""
    execute(
        postgres_database,
        """create schema ours; create schema theirs;
        create table theirs.land(code text primary key); insert into theirs.land values ('pt');
        create table ours.guest(id int primary key, land text references theirs.land);
        create table theirs.visit(id int primary key, guest int references ours.guest on delete cascade);
        insert into ours.guest values (1, 'pt')""",
    )
    ours = schema_of(postgres_database, "ours")
    view = take(ours)
    execute(postgres_database, "insert into ours.guest values (2, null); insert into theirs.visit values (1, 2)")
    with pytest.raises(TargetError, match=r"theirs\.visit"):
        put_back(ours, view)
    assert query(postgres_database, "select * from theirs.visit join ours.guest g on g.id = guest") == [(1, 2, 2, None)]
    execute(postgres_database, "delete from theirs.visit; delete from ours.guest; delete from theirs.land")
    with pytest.raises(TargetError, match=r"theirs\.land"):
        put_back(ours, view)
    assert query(postgres_database, "select * from ours.guest") == []


def test_deferred_triggers_are_counted(postgres: PostgresServer, postgres_database: str) -> None:
    """Goal: what a trigger writes at the very end is seen too. Method: a deferred trigger, a role that cannot silence it."""
    execute(
        postgres_database,
        SHARED + "create table log(what text); create function log() returns trigger language plpgsql as"
        " $$ begin insert into public.log values ('x'); return null; end $$; insert into note values (1, 1, 'a'), (2, 2, 'b');"
        "create constraint trigger late after delete or insert on note deferrable initially deferred for each row"
        " execute function log()",
    )
    role = postgres.create_role()
    try:
        execute(postgres_database, f"grant all on all tables in schema public to {role}")
        plain = rows_of(postgres.dsn(postgres_database.rsplit("/", 1)[1], user=role))
        view = take(plain)
        execute(postgres_database, "delete from note where id = 1")
        execute(postgres_database, "delete from log")
        with pytest.raises(TargetError, match="log"):
            put_back(plain, view)
        assert query(postgres_database, "select count(*) from log") == [(0,)]
        assert query(postgres_database, "select id from note") == [(2,)]
    finally:
        execute(postgres_database, f"drop owned by {role}")
        postgres.drop_role(role)


@pytest.mark.parametrize(
    "prepared", ["alter sequence one.s_id_seq restart with 1000", "select setval('one.s_id_seq', 1000, false)"]
)
def test_sequence_that_was_set_ahead_stays_there(postgres_database: str, prepared: str) -> None:
    """Goal: a sequence never goes back, used or not. Method: set one ahead without drawing from it."""
    execute(postgres_database, "create schema one; create table one.s(id serial primary key, tenant int);"
            "insert into one.s(tenant) select 1 from generate_series(1, 9)")  # fmt: skip
    for config in (schema_of(postgres_database, "one"), rows_of(postgres_database)):
        view = take(config)
        execute(postgres_database, f"delete from one.s where id = 9; {prepared}")
        put_back(config, view)
        assert query(postgres_database, "select nextval('one.s_id_seq')") == [(1000,)]


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ("numeric(10,4)", "numeric(10,2)", "1.2345"),
        ("timestamp", "date", "2026-01-02 03:04:05"),
        ("float8", "float4", "0.1234567890123"),
        ("timestamptz", "timestamptz(0)", "2026-01-02 03:04:05.6+00"),
    ],
)
def test_values_that_a_changed_type_would_round_are_refused(
    postgres_database: str, before: str, after: str, value: str
) -> None:
    """Goal: exact values or an error. Method: a column's type is narrowed after the backup."""
    execute(postgres_database, SHARED + f"create table fact(id int primary key, tenant int, v {before});"
            f"insert into fact values (1, 1, '{value}'), (2, 1, null)")  # fmt: skip
    view = take(rows_of(postgres_database))
    execute(postgres_database, f"delete from fact; alter table fact alter v type {after}")
    with pytest.raises(SchemaMismatch, match="fact"):
        put_back(rows_of(postgres_database), view)
    assert query(postgres_database, "select * from fact") == []


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ("numeric(10,2)", "numeric(12,4)", "1.25"),
        ("int", "bigint", "-7"),
        ("int", "text", "7"),
        ("varchar(5)", "varchar(9)", "a\tb"),
        ("text", "jsonb", '{"a": 1}'),
        ("char(3)", "text", "a"),
    ],
)
def test_values_that_a_changed_type_can_hold_come_back(
    postgres_database: str, before: str, after: str, value: str
) -> None:
    """Goal: a type that grew is no obstacle. Method: widen a column after the backup, with and without a key."""
    execute(postgres_database, SHARED + f"create table fact(id int primary key, tenant int, v {before});"
            f"insert into fact values (1, 1, '{value}'), (2, 1, null); create table bare as select tenant, v from fact")  # fmt: skip
    view = take(rows_of(postgres_database))
    for table in ("fact", "bare"):
        execute(postgres_database, f"alter table {table} alter v type {after} using v::{after}")
    tables = {table: table_text(postgres_database, table) for table in ("fact", "bare")}
    execute(postgres_database, "delete from fact where id = 1; delete from bare")
    restored = put_back(rows_of(postgres_database), view, prove=True)
    assert {table: table_text(postgres_database, table) for table in ("fact", "bare")} == tables
    assert any(
        "fact" in warning and after.split("(", maxsplit=1)[0] in _plain(warning) for warning in restored.report.warnings
    )


def _plain(warning: str) -> str:
    return warning.replace("character varying", "varchar")


@pytest.mark.parametrize(
    "theirs",
    [
        "create table theirs.t(id int, k ours.kind); insert into theirs.t values (1, 'x')",
        "create table theirs.t(id int references ours.guest)",
        "create view theirs.v as select * from ours.guest",
        "create table theirs.t(id int default ours.one())",
        "create table theirs.t(id int check (id > ours.one()))",
        "create table theirs.t(id int); create trigger g after insert on theirs.t execute function ours.told()",
    ],
)
def test_overwriting_a_schema_takes_nothing_from_others(postgres_database: str, theirs: str) -> None:
    """Goal: a schema is replaced only when nothing outside hangs on it. Method: each kind of thing that CASCADE would drop."""
    execute(
        postgres_database,
        "create schema ours; create schema theirs; create type ours.kind as enum ('x');"
        "create table ours.guest(id int primary key, k ours.kind); insert into ours.guest values (1, 'x');"
        "create function ours.one() returns int language sql return 1;"
        "create function ours.told() returns trigger language plpgsql as $$ begin return null; end $$",
    )
    ours = schema_of(postgres_database, "ours")
    view = take(ours)
    execute(postgres_database, "create schema copied")
    execute(postgres_database, "alter schema ours rename to copied_; alter schema copied_ rename to ours; " + theirs)
    execute(postgres_database, "alter schema copied rename to spare; alter schema ours rename to copied")
    with pytest.raises(TargetOccupied, match="theirs"):
        put_back(ours, view, target={"schema": "copied"}, overwrite=True)
    assert query(postgres_database, "select * from copied.guest") == [(1, "x")]
    put_back(ours, view, target={"schema": "spare"}, overwrite=True)
    put_back(ours, view, target={"schema": "spare"}, overwrite=True)
    assert query(postgres_database, "select * from spare.guest") == [(1, "x")]


def test_proof_reads_whole_rows(postgres_database: str) -> None:
    """Goal: the fingerprint covers every column. Method: a table with a column named like the query's own alias."""
    execute(postgres_database, SHARED + "create table odd(id int primary key, t text, tenant int, v text);"
            "insert into odd values (1, 'x', 1, 'a'), (2, 'x', 2, 'b')")  # fmt: skip
    view = take(rows_of(postgres_database))
    digests = []
    for value in ("b", "c"):
        execute(postgres_database, f"update odd set v = '{value}' where id = 2")
        neighbours = put_back(rows_of(postgres_database), view, prove=True).report.neighbours
        assert neighbours is not None
        digests.append(neighbours["fingerprints"]["public.odd"]["digest"])
    assert digests[0] != digests[1]


def test_parents_of_rows_without_a_key_are_held(postgres_database: str) -> None:
    """Goal: a shared row that restored rows refer to cannot vanish before the commit. Method: delete it just before."""
    execute(postgres_database, "create table land(code text primary key); insert into land values ('pt');"
            "create table visit(tenant int, land text references land); insert into visit values (1, 'pt')")  # fmt: skip
    view = take(rows_of(postgres_database))
    execute(postgres_database, "delete from visit")
    with psycopg.connect(postgres_database) as other:
        other.execute("set lock_timeout = '300ms'")

        class Late(NullProgress):
            def phase(self, name: str) -> None:
                if name == "check":
                    with pytest.raises(psycopg.errors.LockNotAvailable):
                        other.execute("delete from land")

        PostgresqlConnector(rows_of(postgres_database)).restore(view, RestoreRequest("opr_late", in_place=True), Late())
    assert query(postgres_database, "select land from visit natural join (select code as land from land) l") == [
        ("pt",)
    ]


def test_one_tenants_id_does_not_use_up_a_shared_sequence(postgres_database: str) -> None:
    """Goal: others go on drawing numbers. Method: a row with the greatest number there is, not drawn from the sequence."""
    execute(postgres_database, "create table ticket(id bigserial primary key, tenant int);"
            "insert into ticket(tenant) values (1), (2); insert into ticket values (9223372036854775807, 1)")  # fmt: skip
    view = take(rows_of(postgres_database))
    execute(postgres_database, "delete from ticket where tenant = 1")
    put_back(rows_of(postgres_database), view)
    execute(postgres_database, "insert into ticket(tenant) values (2)")
    assert query(postgres_database, "select id from ticket order by id") == [(1,), (2,), (3,), (9223372036854775807,)]


def test_proof_sees_children_that_came_meanwhile(postgres_database: str) -> None:
    """Goal: the proof's one snapshot does not orphan anybody. Method: another's row refers to a row that is to go."""
    execute(postgres_database, "create table door(id int primary key, tenant int); insert into door values (1, 1);"
            "create table theirs(id int primary key, door int references door)")  # fmt: skip
    config = rows_of(postgres_database, ignored_links=("theirs_door_fkey",))
    view = take(config)
    execute(postgres_database, "insert into door values (2, 1)")

    class Late(NullProgress):
        done = False

        def phase(self, name: str) -> None:
            if name == "compare" and not self.done:
                self.done = True
                execute(postgres_database, "insert into theirs values (1, 2)")

    with pytest.raises(TargetError, match="theirs"):
        PostgresqlConnector(config).restore(view, RestoreRequest("opr_late", in_place=True, prove=True), Late())
    assert table_text(postgres_database, "door") == ["(1,1)", "(2,1)"]


def test_proof_is_not_held_up_by_long_transactions(postgres_database: str) -> None:
    """Goal: only children that came meanwhile count. Method: an old transaction is open, new children go with their parent."""
    execute(postgres_database, "create table door(id int primary key, tenant int); insert into door values (1, 1);"
            "create table key(id int primary key, door int references door)")  # fmt: skip
    view = take(rows_of(postgres_database))
    with psycopg.connect(postgres_database) as old:
        old.execute("select pg_current_xact_id()")
        execute(postgres_database, "insert into door values (2, 1); insert into key values (1, 2)")
        put_back(rows_of(postgres_database), view, prove=True)
    assert query(postgres_database, "select (select count(*) from door), (select count(*) from key)") == [(1, 0)]
