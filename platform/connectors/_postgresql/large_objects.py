"""Large objects as a table of pages, so that a changed page costs a page.

The pages lie in pg_largeobject, which only a superuser may read; its rows carry xmin like any other table's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors._postgresql.catalogue import Key, Table, TableColumn
from connectors._postgresql.connection import Connection, begin, rows, run, value
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.roles import attempt, grants
from connectors._postgresql.scope import Scope
from connectors._postgresql.staging import copy_in
from engine.ports import TableChange, TableView
from engine.progress import Progress

NAME = "pg_catalog.pg_largeobject"
DOCUMENT = "large-objects.json"
MODULE = "large objects"
PAGE_BYTES = 2048


PAGES = Table(
    oid=2613,
    schema="pg_catalog",
    name="pg_largeobject",
    partitioned=False,
    columns=(
        TableColumn(1, "loid", "oid", 26, "oid", True, False, "", None),
        TableColumn(2, "pageno", "integer", 23, "int4", True, False, "", None),
        TableColumn(3, "data", "bytea", 17, "bytea", True, False, "", None),
    ),
    keys=(
        Key(
            "pg_largeobject_loid_pn_index",
            ("loid", "pageno"),
            ("OPERATOR(pg_catalog.=)", "OPERATOR(pg_catalog.=)"),
            primary=True,
        ),
    ),
    heap=True,
    shape="pg_largeobject",
    names_objects=False,
)
SCOPE = Scope(PAGES, "", (), "large objects of the database")


def may_read(connection: Connection) -> bool:
    """Whether the role may read the pages themselves."""
    return bool(value(connection, "SELECT has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')"))


def any_exist(connection: Connection) -> bool:
    return bool(value(connection, "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)"))


def restore_large_objects(
    connection: Connection,
    pages: TableView | None,
    owners: Sequence[Mapping[str, Any]],
    warn: Callable[[str], None],
    progress: Progress,
) -> None:
    """Make the database's large objects what the backup holds, in one transaction of its own or the caller's."""
    inside = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
    if not inside:
        begin(connection, "READ COMMITTED")
    stage(connection, pages, owners, progress)
    apply_staged(connection, owners, warn)
    if not inside:
        run(connection, "COMMIT")


@dataclass(frozen=True, slots=True)
class LargeChange:
    """What becomes of the large objects; `mark` is a digest of every one that changes, before and after."""

    change: TableChange
    mark: str


def stage(
    connection: Connection, pages: TableView | None, owners: Sequence[Mapping[str, Any]], progress: Progress
) -> LargeChange:
    """Lay the backup's large objects beside the live ones, in temporary tables of the transaction, and compare."""
    run(connection, "CREATE TEMPORARY TABLE lastro_pages (loid oid, pageno int, data bytea) ON COMMIT DROP")
    run(connection, "CREATE TEMPORARY TABLE lastro_objects (loid oid PRIMARY KEY) ON COMMIT DROP")
    if pages is not None:
        copy_in(connection, "lastro_pages", ("loid", "pageno", "data"), pages, progress)
    wanted = ", ".join(f"({int(each['oid'])})" for each in owners)
    if wanted:
        run(connection, f"INSERT INTO lastro_objects VALUES {wanted}")
    run(connection, _COMPARE)
    counts = dict(rows(connection, "SELECT change, count(*) FROM lastro_large GROUP BY change"))
    mark = value(connection, _MARK)
    change = TableChange(
        MODULE, insert=counts.get("I", 0), update=counts.get("U", 0), delete=counts.get("D", 0),
        unchanged=counts.get("=", 0), imaged=False,
    )  # fmt: skip
    return LargeChange(change, mark or "")


_SIDE = (
    "SELECT loid, encode(sha256(convert_to(string_agg(pageno || ':' || encode(sha256(data), 'hex'), ',' ORDER BY pageno),"
    " 'SQL_ASCII')), 'hex') AS mark FROM {} GROUP BY loid"
)
_COMPARE = f"""
CREATE TEMPORARY TABLE lastro_large ON COMMIT DROP AS
SELECT coalesce(m.oid, w.loid) AS loid, coalesce(b.mark, '') AS before, coalesce(a.mark, '') AS after,
       CASE WHEN m.oid IS NULL THEN 'I' WHEN w.loid IS NULL THEN 'D' WHEN b.mark IS DISTINCT FROM a.mark THEN 'U' ELSE '=' END AS change
  FROM pg_largeobject_metadata m FULL JOIN lastro_objects w ON w.loid = m.oid
  LEFT JOIN ({_SIDE.format("pg_largeobject")}) AS b ON b.loid = m.oid
  LEFT JOIN ({_SIDE.format("lastro_pages")}) AS a ON a.loid = w.loid
"""
_MARK = """
SELECT encode(sha256(convert_to(string_agg(concat_ws(':', change, loid, before, after), ',' ORDER BY loid), 'SQL_ASCII')), 'hex')
  FROM lastro_large WHERE change <> '='
"""


def apply_staged(connection: Connection, owners: Sequence[Mapping[str, Any]], warn: Callable[[str], None]) -> None:
    """Carry out what `stage` found in the same transaction. An object that differs anywhere is written anew: pages cannot
    be deleted one by one."""
    run(connection, "SELECT count(lo_unlink(loid)) FROM lastro_large WHERE change IN ('D', 'U')")
    run(connection, "SELECT count(lo_create(loid)) FROM lastro_large WHERE change IN ('I', 'U')")
    run(
        connection,
        f"SELECT count(lo_put(p.loid, p.pageno::int8 * {PAGE_BYTES}, p.data)) FROM"
        " (SELECT p.* FROM lastro_pages p JOIN lastro_large w ON w.loid = p.loid WHERE w.change IN ('I', 'U')"
        " ORDER BY p.loid, p.pageno) AS p",
    )
    user = value(connection, "SELECT current_user")
    for each in owners:
        number = int(each["oid"])
        if each["owner"] != user:
            owner = f"ALTER LARGE OBJECT {number} OWNER TO {ident(each['owner'])}"
            _try(connection, owner, warn, f"the owner of large object {number} is not kept")
        for grantee, privilege, option in grants(each["grants"]):
            sql = f"GRANT {privilege} ON LARGE OBJECT {number} TO {grantee}{option}"
            _try(connection, sql, warn, f"a grant on large object {number} is not kept")
        if each.get("comment"):
            run(connection, f"COMMENT ON LARGE OBJECT {number} IS {literal(each['comment'])}")


def _try(connection: Connection, sql: str, warn: Callable[[str], None], what: str) -> None:
    run(connection, "SAVEPOINT lastro_object")
    if not attempt(connection, sql, warn, what):
        run(connection, "ROLLBACK TO SAVEPOINT lastro_object")
    run(connection, "RELEASE SAVEPOINT lastro_object")
