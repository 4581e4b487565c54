"""A whole database, a whole schema: definitions, rows, large objects, sequences, in place and built anew."""

import gzip
import json
from pathlib import Path

import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import TargetOccupied, UsageError
from engine.progress import NullProgress
from tests.connectors.postgres_views import execute, psql, put_back, query, table_text, take
from tests.services.postgres import PostgresServer

EVERYTHING = r"""
create extension hstore;
create extension citext;
create schema other;
create schema "Ünï ""q";
create type mood as enum ('sad', 'ok', 'h"a,p{p}y');
create type pair as (a int, b text);
create domain price as numeric(12, 4) check (value >= 0);
create domain code as varchar(8);
create type floatrange as range (subtype = float8);
create table awkward(
  id bigint generated always as identity primary key, n numeric, np numeric(20, 5), f4 real, f8 double precision,
  iv interval, r int4range, mr int4multirange, ts timestamptz, tz timetz, d date, a int[], at text[], j json, jb jsonb,
  b bytea, e mood, ea mood[], c pair, ca pair[], dom price, x xml, m money, bt bit(5), vb bit varying, tv tsvector, i inet,
  ci cidr, mac macaddr, u uuid, ch char(5), vc varchar(3), bo boolean, pt point, h hstore, ct citext, fr floatrange,
  "Sel""ect; --" text, doubled numeric generated always as (n * 2) stored);
insert into awkward(n, np, f4, f8, iv, r, mr, ts, tz, d, a, at, j, jb, b, e, ea, c, ca, dom, x, m, bt, vb, tv, i, ci, mac,
  u, ch, vc, bo, pt, h, ct, fr, "Sel""ect; --")
values
  ('1.0', 1.5, 0.1, 0.1, '1 day', '[1,5)', '{[1,3),[5,9)}', 'infinity', '12:00+02', 'infinity', '{1,null,3}',
   '{NULL,"NULL",null,"a\"b","\\",""}', '{"b": 1,  "a": 2}', '{"b": 1,  "a": 2}', '\x00ff5c0a', 'h"a,p{p}y', '{sad,"h\"a,p{p}y"}',
   '(1,"a b")', array[row(1, null), row(null, '')]::pair[], 12.5, '<a>&amp;</a>', '12.34', '10101', '1', 'a fat cat', '10.0.0.1/8',
   '10.0.0.0/8', '08:00:2b:01:02:03', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ab', 'xyz', true, '(1.5,-0)', 'a=>1, "b c"=>NULL',
   'CiText', '[-0,1)', E'tab\t nl\n cr\r bs\\ \\N \b'),
  ('1.00', -1.5, '-0', '-0', '24:00', 'empty', '{}', '-infinity', '00:00-15:59', '0044-03-15 BC', '{}', '{}', 'null', 'null', '',
   'sad', '{}', '(,)', '{}', 0, '', '-92233720368547758.08', '00000', '', '', '::1', '::/0', '08:00:2b:01:02:03',
   'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '', '', false, '(1e300,NaN)', '', '', 'empty', '\N'),
  ('NaN', 0, 'NaN', 'Infinity', '-1 mon +2 days -03:00:00.000001', null, null, '4713-01-01 00:00:00 BC', '23:59:59.999999',
   '5874897-12-31', '[0:1]={7,8}', '{{a,b},{c,d}}', '[]', '[]', null, null, null, null, null, null, null, null, null, null, null,
   null, null, null, null, null, null, null, null, null, null, null, null);
insert into awkward(n) select null from generate_series(1, 20);
create table "Ünï ""q"."tä.b\le"(k1 text, k2 char(4), k3 boolean, v int, primary key (k1, k2, k3));
insert into "Ünï ""q"."tä.b\le" select chr(64 + g % 60) || E'\t' || g, 'x' || g % 3, g % 2 = 0, g from generate_series(1, 200) g;
create table keyless(a int, b text);
insert into keyless select 1, 'same' from generate_series(1, 5);
insert into keyless values (null, null), (null, ''), (2, '\N');
create table nothing();
insert into nothing default values;
create table by_numeric(n numeric primary key, d date unique not null);
insert into by_numeric select g / 3.0, date '2000-01-01' + g from generate_series(1, 50) g;
create table parted(id int, region text, v text, primary key (region, id)) partition by list (region);
create table parted_a partition of parted for values in ('a');
create table parted_b partition of parted for values in ('b');
insert into parted select g, case when g % 2 = 0 then 'a' else 'b' end, 'v' || g from generate_series(1, 40) g;
create table animal(id int primary key, name text);
create table dog(breed text) inherits (animal);
insert into animal values (1, 'generic');
insert into dog values (2, 'rex', 'collie');
create table tree(id int primary key, up int references tree, payload text);
insert into tree select g, nullif(g / 2, 0), 't' || g from generate_series(1, 31) g;
create table loop_a(id int primary key, b int);
create table loop_b(id int primary key, a int references loop_a);
alter table loop_a add foreign key (b) references loop_b;
insert into loop_a values (1, null);
insert into loop_b values (1, 1);
update loop_a set b = 1;
create view busy as select * from tree where id > 3;
create materialized view counted as select count(*) as n from tree;
create function touch() returns trigger language plpgsql as $f$
begin
  -- Name: fake; Type: TABLE; Schema: public; Owner: nobody
  new.payload := 'touched'; return new;
end $f$;
create trigger touch before update on tree for each row execute function touch();
create index on tree (payload);
create sequence other.free start 7;
select nextval('other.free');
select lo_from_bytea(4242, decode(repeat('ab', 5000), 'hex'));
select lo_create(4243);
comment on table tree is 'it''s a tree';
"""
TABLES = (
    "awkward", '"Ünï ""q"."tä.b\\le"', "keyless", "nothing", "by_numeric", "parted", "only animal", "dog", "tree", "loop_a",
    "loop_b", "counted",
)  # fmt: skip


def texts(dsn: str) -> dict[str, list[str]]:
    found = {table: table_text(dsn, table) for table in TABLES}
    found["large"] = [row[0] for row in query(dsn, "select md5(lo_get(oid)) from pg_largeobject_metadata order by oid")]
    return found


@pytest.fixture
def server_database(postgres_each: PostgresServer):  # type: ignore[no-untyped-def]
    name = postgres_each.create_database()
    # The wheel's server is built without libxml.
    xml = query(
        postgres_each.dsn(name), "select count(*) from pg_config where name = 'CONFIGURE' and setting ~ 'libxml'"
    )[0][0]
    execute(postgres_each.dsn(name), EVERYTHING if xml else EVERYTHING.replace("x xml", "x text"))
    yield postgres_each, postgres_each.dsn(name)
    postgres_each.drop_database(name)


def test_database_in_place(server_database: tuple[PostgresServer, str]) -> None:
    """Goal: every type, keyless, partitioned, circular. Method: change all of it, restore in place, compare texts."""
    _, dsn = server_database
    config = PostgresqlConfig(dsn=dsn, layout="database")
    view, before = take(config), texts(dsn)
    execute(
        dsn,
        r"""update awkward set n = 1.00, f8 = 0 where id = 1; update awkward set n = 1.0, f4 = 0 where id = 2;
        delete from awkward where id > 10; insert into keyless values (1, 'same'), (9, 'new');
        delete from keyless where a is null; insert into nothing default values; update by_numeric set n = 1.0 where n = 1;
        update parted set region = 'a', id = id + 100 where id < 10; delete from parted where id = 20;
        delete from dog; delete from tree where id > 20; refresh materialized view counted;
        select setval('other.free', 1); update tree set up = null; update loop_a set b = null; delete from loop_b; delete from loop_a;
        delete from "Ünï ""q"."tä.b\le" where v % 3 = 0; update "Ünï ""q"."tä.b\le" set v = 0 where v % 5 = 0;
        select lo_put(4242, 2050, 'zz'); select lo_unlink(4243); select lo_create(999);""",
    )
    restored = put_back(config, view, prove=True)
    assert texts(dsn) == before
    assert take(config).digests() == view.digests()
    assert restored.changes()["public.nothing"] == (0, 0, 1)
    assert query(dsn, "select nextval('other.free')") == [(8,)]
    assert put_back(config, view).changes() == {}


def test_lost_tables_are_made_again(postgres_database: str) -> None:
    """Goal: dropped tables return with indexes, constraints and links. Method: drop with cascade, restore in place."""
    execute(postgres_database, EVERYTHING)
    config = PostgresqlConfig(dsn=postgres_database, layout="database")
    view, before = take(config), texts(postgres_database)
    execute(
        postgres_database, "drop table loop_b cascade; drop table parted; drop table keyless; drop type pair cascade"
    )
    execute(
        postgres_database,
        "create type pair as (a int, b text); alter table awkward add c pair; alter table awkward add ca pair[]",
    )
    put_back(config, view)
    after = texts(postgres_database)
    before.pop("awkward"), after.pop("awkward")  # its columns now stand in another order
    assert after == before
    constraints = "select conname from pg_constraint where contype in ('f', 'p') and conrelid::regclass::text ~ 'loop|parted' order by 1"
    assert [row[0] for row in query(postgres_database, constraints)] == [
        "loop_a_b_fkey", "loop_a_pkey", "loop_b_a_fkey", "loop_b_pkey", "parted_a_pkey", "parted_b_pkey", "parted_pkey",
    ]  # fmt: skip


def test_database_built_anew(server_database: tuple[PostgresServer, str]) -> None:
    """Goal: definitions, rows and values in an empty database. Method: restore to a new DSN, compare texts and definitions."""
    server, dsn = server_database
    execute(dsn, "create role lastro_reader; grant select on tree to lastro_reader")
    view, before = take(PostgresqlConfig(dsn=dsn)), texts(dsn)
    there = server.dsn("built_anew")
    try:
        restored = put_back(PostgresqlConfig(dsn=dsn), view, target={"dsn": there})
        assert texts(there) == before
        assert query(there, "select nextval('other.free'), nextval('awkward_id_seq')") == [(8, 24)]
        shape = "select relkind::text, relname from pg_class c join pg_namespace n on n.oid = relnamespace where nspname !~ '^(pg_|inf)' order by 1, 2"
        assert query(there, shape) == query(dsn, shape)
        assert query(there, "select has_table_privilege('lastro_reader', 'tree', 'select')") == [(True,)]
        assert restored.report.warnings == ()
        with pytest.raises(TargetOccupied):
            put_back(PostgresqlConfig(dsn=dsn), view, target={"dsn": there})
        execute(there, "drop table tree cascade")
        put_back(PostgresqlConfig(dsn=dsn), view, target={"dsn": there}, overwrite=True)
        assert texts(there) == before
    finally:
        server.drop_database("built_anew")
        execute(dsn, "drop owned by lastro_reader; drop role lastro_reader")


def test_export_is_read_by_psql(server_database: tuple[PostgresServer, str], tmp_path: Path) -> None:
    """Goal: a dump that standard tools read. Method: psql into an empty database, compare texts."""
    server, dsn = server_database
    view = take(PostgresqlConfig(dsn=dsn))
    assert PostgresqlConnector(PostgresqlConfig(dsn=dsn)).export(view, str(tmp_path), NullProgress()) == ["db.sql.gz"]
    name = server.create_database()
    try:
        psql(server.dsn(name), gzip.decompress((tmp_path / "db.sql.gz").read_bytes()).decode())
        assert texts(server.dsn(name)) == texts(dsn)
        assert query(server.dsn(name), "select last_value from other.free") == [(7,)]
    finally:
        server.drop_database(name)


def test_schema_in_place_and_beside(postgres_database: str) -> None:
    """Goal: one tenant's schema of several. Method: damage it, restore it beside and in place; the others stay."""
    schema = """create schema {0}; create table {0}.item(id serial primary key, up int references {0}.item, v text);
    insert into {0}.item(up, v) select nullif(g - 1, 0), '{0}' || g from generate_series(1, 20) g;
    create view {0}.big as select * from {0}.item where id > 10;"""
    for name in ("t1", "t2", '"T three"'):
        execute(postgres_database, schema.format(name))
    config = PostgresqlConfig(dsn=postgres_database, layout="schema", schema="T three")
    view = take(config)
    before = {name: table_text(postgres_database, f"{name}.item") for name in ("t1", "t2", '"T three"')}
    assert [table.name for table in view.tables] == ["T three.item"]
    execute(
        postgres_database,
        """delete from "T three".item where id > 15; update "T three".item set v = 'x' where id = 3""",
    )
    damaged = table_text(postgres_database, '"T three".item')
    put_back(config, view, target={"schema": "copy"})
    assert table_text(postgres_database, "copy.item") == before['"T three"']
    assert table_text(postgres_database, '"T three".item') == damaged
    assert query(
        postgres_database, "select count(*) from copy.big, lateral nextval('copy.item_id_seq') n where n > 20"
    ) == [(10,)]
    with pytest.raises(TargetOccupied, match="copy"):
        put_back(config, view, target={"schema": "copy"})
    with pytest.raises(UsageError):
        put_back(config, view, target={"schema": "T three"})
    put_back(config, view, prove=True)
    assert {name: table_text(postgres_database, f"{name}.item") for name in before} == before


def test_roles_are_named_in_the_backup(server_database: tuple[PostgresServer, str]) -> None:
    """Goal: owners and grantees travel. Method: read the document after granting to a role with a password."""
    _, dsn = server_database
    execute(dsn, "create role lastro_writer login password 'pw'; grant insert on tree to lastro_writer")
    try:
        document = json.loads(take(PostgresqlConfig(dsn=dsn)).documents["roles.json"].read())
    finally:
        execute(dsn, "drop owned by lastro_writer; drop role lastro_writer")
    writer = next(role for role in document["roles"] if role["name"] == "lastro_writer")
    assert writer["login"] is True and writer["password"].startswith("SCRAM-SHA-256$")
    assert document["database"]["encoding"] == "UTF8"


@pytest.mark.parametrize("made", ["", "create table bare(v text); insert into bare values ('x'), ('x')"])
def test_a_database_with_little_in_it_is_built_anew(postgres_database: str, made: str) -> None:
    """Goal: no tables, or none with keys or indexes, is no special case. Method: back up, build anew, compare."""
    execute(postgres_database, made or "select 1")
    target = f"{postgres_database.rpartition('/')[0]}/built_{len(made)}_{postgres_database[-6:].strip('_')}"
    config = PostgresqlConfig(dsn=postgres_database, layout="database")
    put_back(config, take(config), target={"dsn": target})
    assert query(target, "select count(*) from pg_tables where schemaname = 'public'") == [(1 if made else 0,)]
    if made:
        assert query(target, "select v from bare") == [("x",), ("x",)]
