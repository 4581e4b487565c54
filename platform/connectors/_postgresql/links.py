"""Foreign keys checked by hand, because triggers are off while a restore writes.

With `session_replication_role = replica` neither cascades nor user triggers run, and neither does the
server's own checking. What it would have done is done here: the parents of every touched row are locked
(FOR KEY SHARE) and must exist, and nothing may still refer to a parent that is gone. The checks run
after the writes under READ COMMITTED: a concurrent insert of a child either is visible by now or waits
for the row that we have deleted, and then fails by its own trigger.
"""

from collections.abc import Mapping

import psycopg

from connectors._postgresql.catalogue import Catalogue, ForeignKey, Table, read_catalogue
from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.difference import Difference
from connectors._postgresql.quoting import ident, literal
from engine.errors import TargetError

_LINKED_SCHEMAS = """
SELECT DISTINCT unnest(ARRAY[a.nspname, b.nspname]) FROM pg_constraint k
  JOIN pg_class c ON c.oid = coalesce(pg_partition_root(k.conrelid), k.conrelid) JOIN pg_namespace a ON a.oid = c.relnamespace
  JOIN pg_class p ON p.oid = coalesce(pg_partition_root(k.confrelid), k.confrelid) JOIN pg_namespace b ON b.oid = p.relnamespace
 WHERE k.contype = 'f' AND {schema} IN (a.nspname, b.nspname)
"""


def with_linked_schemas(connection: Connection, catalogue: Catalogue, schema: str) -> Catalogue:
    """A schema's catalogue with the tables of all schemas that foreign keys join it to."""
    linked = {row[0] for row in rows(connection, _LINKED_SCHEMAS.format(schema=literal(schema)))} if schema else set()
    return read_catalogue(connection, schemas=sorted(linked)) if linked - {schema} else catalogue


def check_links(
    connection: Connection, catalogue: Catalogue, differences: Mapping[int, Difference], *, lock: bool
) -> int:
    """Check every foreign key that the changes could have broken; return how many. TargetError for a broken one."""
    checked = 0
    for link in catalogue.foreign_keys:
        if not link.validated:
            continue
        child, parent = catalogue.tables[link.child], catalogue.tables[link.parent]
        writes = differences.get(link.child)
        if writes is not None and (writes.change.insert or writes.change.update):
            if lock:
                _lock_parents(connection, link, parent, writes)
            _refuse(_missing_parents(connection, link, parent, writes), child, parent, link)
            checked += 1
        gone = differences.get(link.parent)
        if gone is not None and (gone.change.delete or gone.change.update):
            _refuse(_orphans(connection, link, child, parent, gone), child, parent, link)
            checked += 1
    return checked


def _refuse(count: int, child: Table, parent: Table, link: ForeignKey) -> None:
    if count:
        raise TargetError(
            f"{count} rows of {child.display} would refer to rows of {parent.display} that are not there ({link.name})",
            hint="nothing was changed; bring those rows back first, or detach what refers to rows made after the backup",
        )


def _on(link: ForeignKey, parent: str, child: str) -> str:
    pairs = zip(link.parent_columns, link.equals, link.columns, strict=True)
    return " AND ".join(f"{parent}.{ident(p)} {equals} {child}.{ident(c)}" for p, equals, c in pairs)


def _touched(link: ForeignKey, writes: Difference) -> str:
    """The live rows that were inserted or updated, as a FROM item `c`; where no key tells them, those of the source."""
    pair = writes.pair
    source = link.child_part or pair.table.source
    if pair.key is None or pair.straight:
        return f"({pair.scope.with_clause}SELECT t.* FROM {source} AS t{pair.scope.where}) AS c"
    on = pair.on_diff("t")
    return f"(SELECT t.* FROM {source} AS t JOIN {pair.diff} AS d ON {on} WHERE d.change <> 'D') AS c"


def _has_parent(link: ForeignKey, parent: Table) -> str:
    """Whether the row `c` has its parent; with a period, whether its parents together cover it."""
    parents = f"FROM {link.parent_part or parent.source} AS p WHERE {_on(link, 'p', 'c')}"
    if not link.period:
        return f"EXISTS (SELECT {parents})"
    covered = f"(SELECT range_agg(p.{ident(link.parent_columns[-1])}) {parents})"
    return f"coalesce(c.{ident(link.columns[-1])} <@ {covered}, false)"


def _lock_parents(connection: Connection, link: ForeignKey, parent: Table, writes: Difference) -> None:
    run(connection, "SAVEPOINT lastro_parents")
    try:
        run(
            connection,
            f"SELECT count(*) FROM (SELECT FROM {link.parent_part or parent.source} AS p WHERE EXISTS (SELECT FROM {_touched(link, writes)}"
            f" WHERE {_on(link, 'p', 'c')}) FOR KEY SHARE OF p) AS locked",
        )
    except psycopg.errors.InsufficientPrivilege:
        # Without the right to lock a shared table its rows are checked all the same, a moment before the commit.
        run(connection, "ROLLBACK TO SAVEPOINT lastro_parents")
    run(connection, "RELEASE SAVEPOINT lastro_parents")


def _missing_parents(connection: Connection, link: ForeignKey, parent: Table, writes: Difference) -> int:
    filled = " AND ".join(f"c.{ident(name)} IS NOT NULL" for name in link.columns)
    return int(
        value(
            connection,
            f"SELECT count(*) FROM {_touched(link, writes)} WHERE {filled} AND NOT {_has_parent(link, parent)}",
        )
    )


def _orphans(connection: Connection, link: ForeignKey, child: Table, parent: Table, gone: Difference) -> int:
    old = {name: f"r{n}" for n, name in enumerate(gone.referenced)}
    pairs = zip(link.parent_columns, link.equals, link.columns, strict=True)
    was = " AND ".join(f"d.{old[p]} {equals} c.{ident(c)}" for p, equals, c in pairs)
    return int(
        value(
            connection,
            f"SELECT count(*) FROM {link.child_part or child.source} AS c WHERE EXISTS (SELECT FROM {gone.pair.diff} AS d WHERE"
            f" d.change <> 'I' AND {was}) AND NOT {_has_parent(link, parent)}",
        )
    )


_INVISIBLE = (
    "NOT pg_visible_in_snapshot((r.latest - mod(r.latest - c.xmin::text::numeric, 4294967296))::text::xid8, {snapshot})"
)
"""Whether another snapshot sees the row `c`: its xmin is made whole by the latest number given out, `r.latest`."""

_LATEST = "(SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric AS latest) AS r"


def check_new_children(
    connection: Connection, other: Connection, catalogue: Catalogue, differences: Mapping[int, Difference]
) -> None:
    """Look through another connection for children that a transaction of one snapshot cannot see. ConcurrentChange for any.

    Parents that this transaction has deleted are locked, so that no child can come after this look.
    """
    snapshot = literal(str(value(connection, "SELECT pg_current_snapshot()::text"))) + "::pg_snapshot"
    for number, link in enumerate(catalogue.foreign_keys):
        gone = differences.get(link.parent)
        if not link.validated or gone is None or not (gone.change.delete or gone.change.update):
            continue
        child, parent = catalogue.tables[link.child], catalogue.tables[link.parent]
        table = f"lastro_gone_{number}"
        names = ", ".join(map(ident, link.parent_columns))
        run(other, f"CREATE TEMPORARY TABLE {table} AS SELECT {names} FROM {parent.source} WITH NO DATA")
        old = ", ".join(f"r{gone.referenced.index(name)}" for name in link.parent_columns)
        query = f"COPY (SELECT {old} FROM {gone.pair.diff} WHERE change <> 'I') TO STDOUT"
        with (
            connection.cursor() as reading,
            other.cursor() as writing,
            reading.copy(query.encode()) as source,
            writing.copy(f"COPY {table} FROM STDIN".encode()) as target,
        ):
            for block in source:
                target.write(block)
        count = value(
            other,
            f"SELECT count(*) FROM {_LATEST}, {link.child_part or child.source} AS c JOIN {table} AS g ON {_on(link, 'g', 'c')}"
            f" WHERE {_INVISIBLE.format(snapshot=snapshot)}",
        )
        if count:
            raise ConcurrentChange(f"{child.display}: {count} new rows refer to rows of {parent.display}")
