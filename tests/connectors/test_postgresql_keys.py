"""Keys of every type: full, incremental and restore of one tenant's rows, others' rows beside them."""

from typing import Any

import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.progress import NullProgress
from engine.table_backup import backup_table
from engine.table_view import TableView
from tests.connectors.postgres_views import execute, put_back, query, table_text, take
from tests.engine.table_sources import MemoryChunks

TYPES = """
create schema ext; create extension citext schema ext; create extension hstore schema ext;
create type mood as enum ('sad', 'o''k', 'h"a,p{p}y\\'); create type pair as (a int, b text); create type span as range (subtype = float8);
create domain code as varchar(9) check (value <> ''); create domain codes as code[]; create domain number as int;
create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
"""
KEYS = {
    "numeric": ("1.0", "NaN", "-0.00", "1e40", "12345678901234567890.5"),
    "float8": ("0.1", "-0", "NaN", "Infinity", "1e-300"),
    "text": ("", "a\tb", "a\nb", "\\", "ä", "a b", "\\N", "'"),
    'text collate "blind"': ("a", "B", "ä", "z"),
    "varchar(5)": ("a", "b ", " c", "ÄÖ"),
    "char(4)": ("a", "bb", "", "ä"),
    "bytea": ("\\x00", "\\x5c", "\\xff0a09", "\\x"),
    "boolean": ("t", "f"),
    "date": ("2020-01-01", "infinity", "0044-03-15 BC", "5874897-12-31"),
    "timestamptz": ("2020-01-01 00:00:00+00", "-infinity", "2020-01-01 00:00:00.000001+00", "4713-01-01 BC"),
    "timetz": ("12:00+02", "23:59:59.999999-15", "00:00+00"),
    "interval": ("1 day", "1 mon", "-3:00:00.000001", "1000 years"),
    "uuid": (
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ),
    "inet": ("10.0.0.1/8", "10.0.0.1", "::1"),
    "macaddr": ("08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"),
    "bit(3)": ("101", "000"),
    "money": ("12.34", "-92233720368547758.08"),
    "jsonb": ('{"a": 1}', "[]", "null", '"x\\ty"'),
    "oid": ("0", "4294967295"),
    "int2": ("-32768", "32767"),
    "mood": ("sad", "o'k", 'h"a,p{p}y\\'),
    "pair": ("(1,a)", '(,"a b")', '(2,"""q"",")', "(3,)"),
    "pair[]": ('{"(1,a)"}', "{}", '{"(,\\"x,y\\")",NULL}'),
    "text[]": ("{a,NULL}", "{}", '{"a\\"b","\\\\"}', "[0:1]={a,b}", "{{a},{b}}"),
    "int4range": ("[1,5)", "empty", "(,3)"),
    "span": ("[-0,1)", "(,Infinity]"),
    "nummultirange": ("{[1,2),(3,4]}", "{}"),
    "codes": ("{a,b}", "{}"),
    "code": ("a", "b'\\"),
    "number": ("-5", "5"),
    "ext.citext": ("Acme", "äÖ"),
    "tsvector": ("'a':1 'fat':2", ""),
    "tid": ("(0,1)", "(1,2)"),
    "pg_lsn": ("0/1", "FFFFFFFF/FFFFFFFF"),
    "xid8": ("1", "18446744073709551615"),
    '"char"': ("a", "\\200"),
    "name": ("a", "B c"),
}


def backed_up(config: PostgresqlConfig, chunks: MemoryChunks, nodes: dict[str, Any]) -> dict[str, list[bytes]]:
    """An incremental backup; the rows it holds."""
    with PostgresqlConnector(config).open(NullProgress()) as reader:
        for part in reader.tables():
            nodes[part.name] = backup_table(
                chunks, part, parent=nodes.get(part.name), reader=chunks, full=False, progress=NullProgress()
            )
    return {name: [line for batch in TableView(chunks, node).rows() for line in batch] for name, node in nodes.items()}


@pytest.fixture
def keyed(postgres_database: str) -> str:
    """A table for each type: two tenants, every value a key of each."""
    execute(postgres_database, TYPES)
    for number, (kind, values) in enumerate(KEYS.items()):
        execute(postgres_database, f"create table k{number}(tenant int, k {kind}, v text, primary key (k, tenant))")
        for tenant in (1, 2):
            for value in values:
                quoted = "E'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
                execute(postgres_database, f"insert into k{number} values ({tenant}, {quoted}, 'old')")
    return postgres_database


def test_keys_of_every_type(keyed: str) -> None:
    """Goal: found again, changed or not. Method: change and delete some, back up, damage, restore, compare all rows."""
    config = PostgresqlConfig(dsn=keyed, layout="rows", tenant_column="tenant", tenant_value="1", definitions=False)
    chunks, nodes = MemoryChunks(), dict[str, Any]()
    tables = [f"k{number}" for number in range(len(KEYS))]
    backed_up(config, chunks, nodes)
    for table in tables:
        execute(
            keyed,
            f"update {table} set v = 'new' where tenant = 1 and ctid = (select min(ctid) from {table} where tenant = 1)",
        )
        execute(
            keyed,
            f"delete from {table} where tenant = 1 and ctid = (select max(ctid) from {table} where tenant = 1 and v = 'old')",
        )
    view = take(config)
    assert backed_up(config, chunks, nodes) == {table.name: table.rows_only for table in view.tables}
    before = {table: table_text(keyed, table) for table in tables}
    for number, table in enumerate(tables):
        execute(
            keyed, f"update {table} set v = 'lost' where tenant = 1; update {table} set tenant = 3 where tenant = 2"
        )
        execute(keyed, f"insert into {table} select 1, k, 'extra' from {table} t where tenant = 3"
                       f" and not exists (select from {table} o where o.tenant = 1 and o.k operator({'ext' if 'citext' in list(KEYS)[number] else 'pg_catalog'}.=) t.k)")  # fmt: skip
        execute(keyed, f"update {table} set tenant = 2 where tenant = 3")
    put_back(config, view, prove=True)
    assert {table: table_text(keyed, table) for table in tables} == before
    assert put_back(config, view).changes() == {}
    assert query(keyed, "select count(*) from k0 where tenant = 2") == [(len(KEYS["numeric"]),)]
