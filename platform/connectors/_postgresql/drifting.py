"""The schema at the backup against the schema now, and what a restore in place does about each difference."""

import re
from collections.abc import Iterator, Mapping, Sequence

from connectors._postgresql.connection import Connection, rows
from connectors._postgresql.definitions import POST_DATA, PRE_DATA, Item, items
from connectors._postgresql.planning import Planned
from connectors._postgresql.quoting import display_name
from connectors._postgresql.staging import Pair, lost_partitions
from engine.plans import Drift
from engine.ports import SourceView

_NOW = """
SELECT n.nspname, r.relname, 'constraint ' || c.conname, pg_get_constraintdef(c.oid)
  FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
 WHERE c.conrelid = ANY (ARRAY[{oids}]::oid[]) AND c.contype IN ('p', 'u', 'x', 'f', 'c')
 UNION ALL
SELECT n.nspname, r.relname, 'index ' || x.relname, pg_get_indexdef(i.indexrelid)
  FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class r ON r.oid = i.indrelid JOIN pg_namespace n ON n.oid = r.relnamespace
 WHERE i.indrelid = ANY (ARRAY[{oids}]::oid[]) AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x'))
"""

_ADDED = re.compile(r"ADD CONSTRAINT (?:\"(?:[^\"]|\"\")*\"|\S+) (?P<text>.*);", re.DOTALL)
_INLINE = re.compile(
    r"^    CONSTRAINT (?P<name>\"(?:[^\"]|\"\")*\"|\S+) (?P<text>CHECK .*?)(?:,\n|\n\))", re.DOTALL | re.MULTILINE
)
_NAMED = re.compile(r"^CREATE (?:UNIQUE )?INDEX (?:\"(?:[^\"]|\"\")*\"|\S+) ON (?:ONLY )?(?P<table>\S+)")

Name = tuple[str, str, str]
"""Schema, table, and what it is: `constraint x` or `index x`."""


def find_drift(connection: Connection, view: SourceView, planned: Planned) -> list[Drift]:
    """Columns, types, partitions, and with definitions in the backup constraints and indexes, of the compared tables."""
    pairs = [difference.pair for difference in planned.differences]
    found = [drift for pair in pairs for drift in _columns(pair)]
    if PRE_DATA in view.documents and POST_DATA in view.documents and pairs:
        found += _rules(connection, view, pairs)
    return found


def _columns(pair: Pair) -> Iterator[Drift]:
    table = pair.table
    was = {column.name: column for column in pair.view.columns}
    for name in pair.removed:
        action = "its values are not restored; they stay in the backup"
        yield Drift(f"{table.display}.{name}", was[name].type, None, action)
    for name in pair.added:
        column = table.column(name)
        action = "kept where a row stays, its default where one comes back"
        if column.not_null and column.default is None and not column.identity:
            action = "kept where a row stays; rows that come back are refused: it must not be null and has no default"
        yield Drift(f"{table.display}.{name}", None, column.type, action)
    for name, before, now in pair.changed:
        yield Drift(f"{table.display}.{name}", before, now, "values are converted; refused where one does not fit")
    for schema, name, bound in lost_partitions(pair.view, table):
        action = "made again if it can be attached, else its rows go where the table puts them"
        yield Drift(f"{table.display}, partition {schema}.{name}", bound, None, action)


def _rules(connection: Connection, view: SourceView, pairs: Sequence[Pair]) -> Iterator[Drift]:
    """Constraints and indexes by name, their definitions as the server prints them."""
    oids = ", ".join(str(pair.table.oid) for pair in pairs)
    now = {(row[0], row[1], row[2]): _plain(row[3]) for row in rows(connection, _NOW.format(oids=oids))}
    compared = {(pair.table.schema, pair.table.name) for pair in pairs}
    was = {name: text for name, text in _stored(view).items() if (name[0], name[1]) in compared}
    for name in sorted(was.keys() | now.keys()):
        before, after = was.get(name), now.get(name)
        if before == after:
            continue
        if after is None:
            action = "stays away: a restore in place changes rows only"
        elif before is None:
            action = "restored rows must fit it, and are refused where they do not"
        else:
            action = "restored rows must fit it as it is now, and are refused where they do not"
        yield Drift(f"{display_name(name[0], name[1])}, {name[2]}", before, after, action)


def _stored(view: SourceView) -> Mapping[Name, str]:
    found: dict[Name, str] = {}
    for item in items(view.documents[PRE_DATA].read()):
        if item.kind == "TABLE":
            for match in _INLINE.finditer(item.sql):
                found[item.schema, item.tag, f"constraint {_unquoted(match['name'])}"] = _plain(match["text"])
    for item in items(view.documents[POST_DATA].read()):
        found.update(_of_item(item))
    return found


def _of_item(item: Item) -> Iterator[tuple[Name, str]]:
    if item.kind in ("CONSTRAINT", "FK CONSTRAINT"):
        match = _ADDED.search(item.sql)
        table, _, name = item.tag.rpartition(" ")
        if match is not None:
            yield (item.schema, table, f"constraint {name}"), _plain(match["text"])
    elif item.kind == "INDEX":
        text = item.sql.strip().partition(";")[0]
        match = _NAMED.search(text)
        if match is not None:
            table = _unquoted(match["table"].rpartition(".")[2])
            yield (item.schema, table, f"index {item.tag}"), _plain(text)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
