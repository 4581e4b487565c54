"""Large objects as a table of pages, so that a changed page costs a page.

The pages lie in pg_largeobject, which only a superuser may read; its rows carry xmin like any other table's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg

from connectors._postgresql.catalogue import Key, Table, TableColumn
from connectors._postgresql.connection import Connection, begin, run, value
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.roles import attempt, grants
from connectors._postgresql.scope import Scope
from connectors._postgresql.staging import copy_in
from engine.ports import TableView
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
    run(connection, "CREATE TEMPORARY TABLE lastro_pages (loid oid, pageno int, data bytea) ON COMMIT DROP")
    run(connection, "CREATE TEMPORARY TABLE lastro_objects (loid oid PRIMARY KEY) ON COMMIT DROP")
    if pages is not None:
        copy_in(connection, "lastro_pages", ("loid", "pageno", "data"), pages, progress)
    wanted = ", ".join(f"({int(each['oid'])})" for each in owners)
    if wanted:
        run(connection, f"INSERT INTO lastro_objects VALUES {wanted}")
    run(
        connection,
        "SELECT count(lo_unlink(m.oid)) FROM pg_largeobject_metadata m WHERE NOT EXISTS (SELECT FROM lastro_objects w WHERE w.loid = m.oid)",
    )
    run(
        connection,
        "SELECT count(lo_create(w.loid)) FROM lastro_objects w WHERE NOT EXISTS (SELECT FROM pg_largeobject_metadata m WHERE m.oid = w.loid)",
    )
    # An object that differs anywhere is emptied and written anew: pages cannot be deleted one by one.
    run(
        connection,
        "CREATE TEMPORARY TABLE lastro_rewrite ON COMMIT DROP AS SELECT DISTINCT coalesce(l.loid, p.loid) AS loid"
        " FROM pg_largeobject l FULL JOIN lastro_pages p ON l.loid = p.loid AND l.pageno = p.pageno"
        " WHERE l.data IS DISTINCT FROM p.data",
    )
    run(connection, "SELECT count(lo_unlink(loid)) FROM lastro_rewrite")
    run(connection, "SELECT count(lo_create(loid)) FROM lastro_rewrite")
    run(
        connection,
        f"SELECT count(lo_put(p.loid, p.pageno::int8 * {PAGE_BYTES}, p.data)) FROM"
        " (SELECT p.* FROM lastro_pages p JOIN lastro_rewrite w ON w.loid = p.loid ORDER BY p.loid, p.pageno) AS p",
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
    if not inside:
        run(connection, "COMMIT")


def _try(connection: Connection, sql: str, warn: Callable[[str], None], what: str) -> None:
    run(connection, "SAVEPOINT lastro_object")
    if not attempt(connection, sql, warn, what):
        run(connection, "ROLLBACK TO SAVEPOINT lastro_object")
    run(connection, "RELEASE SAVEPOINT lastro_object")
