"""Large objects: their pages as a table of a backup, and the staging of what a restore or an undo wants of them.

The pages lie in pg_largeobject, which only a superuser may read unless it was granted; its rows carry xmin like any other
table's. Everything here lives in temporary tables of the transaction, and nothing is held per object in our memory:

    lastro_pages        wanted pages (loid, pageno, data)
    lastro_large_want   an object each: its wanted attributes (null: it must not exist), and for an undo what the restore made of it

`large_comparing` compares them with what is there, `large_applying` makes it so, `large_imaging` keeps what was there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import psycopg

from connectors._postgresql import unencoded
from connectors._postgresql.catalogue import Key, Table, TableColumn
from connectors._postgresql.connection import Connection, begin, run, value
from connectors._postgresql.scope import Scope
from connectors._postgresql.staging import copy_in
from engine.errors import TargetDenied
from engine.ports import SourceView, TableChange, TableView
from engine.progress import Progress

NAME = "pg_catalog.pg_largeobject"
DOCUMENT = "large-objects.json"
MODULE = "large objects"
PAGE_BYTES = 2048
OBJECTS_PER_COPY = 1000


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

_SORTED = "coalesce((SELECT jsonb_agg(e ORDER BY e::text COLLATE \"C\") FROM ({}) AS each), '[]')"
_LIVE_RIGHTS = _SORTED.format(
    "SELECT jsonb_build_array(pg_get_userbyid(a.grantor), CASE WHEN a.grantee = 0 THEN 'public' ELSE"
    " pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable) AS e"
    " FROM aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) AS a"
)
ATTRIBUTES = (
    f"SELECT m.oid AS loid, jsonb_build_object('owner', pg_get_userbyid(m.lomowner), 'rights', {_LIVE_RIGHTS},"
    " 'comment', d.description, 'labels', coalesce(l.labels, '{}')) AS attributes"
    " FROM pg_largeobject_metadata AS m"
    " LEFT JOIN pg_description AS d ON d.objoid = m.oid AND d.classoid = 'pg_largeobject'::regclass AND d.objsubid = 0"
    " LEFT JOIN (SELECT objoid, jsonb_object_agg(provider, label) AS labels FROM pg_seclabel"
    " WHERE classoid = 'pg_largeobject'::regclass AND objsubid = 0 GROUP BY objoid) AS l ON l.objoid = m.oid"
)
"""Owner, rights, comment and security labels of every live object, in a form that can be compared: each right is
[grantor, grantee, privilege, with grant option], and what an owner has without a grant is written out."""

_WANTED = (
    "jsonb_build_object('owner', r.attributes -> 'owner', 'rights', "
    + _SORTED.format("SELECT e FROM jsonb_array_elements(r.attributes -> 'rights') AS e")
    + ", 'comment', r.attributes -> 'comment', 'labels', r.attributes -> 'labels')"
)


def may_read(connection: Connection) -> bool:
    """Whether the role may read the pages themselves."""
    return bool(value(connection, "SELECT has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')"))


def any_exist(connection: Connection) -> bool:
    return bool(value(connection, "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)"))


def require_reading(connection: Connection) -> None:
    """Raise TargetDenied unless the pages can be compared with a backup's."""
    if not may_read(connection):
        raise TargetDenied(
            "the role may not read the database's large objects, so that nobody could compare them",
            hint="nothing was changed; restore as a superuser, or GRANT SELECT ON pg_largeobject to the role; "
            "--mode selective or merge leaves large objects as they are",
        )


def stage_backup(connection: Connection, pages: TableView | None, document: bytes, progress: Progress) -> None:
    """Stage what a backup holds: all objects become its, and others go."""
    make_tables(connection)
    if pages is not None:
        copy_in(connection, "lastro_pages", ("loid", "pageno", "data"), pages, progress)
    run(connection, "CREATE TEMPORARY TABLE lastro_large_raw (loid oid, attributes jsonb) ON COMMIT DROP")
    copy_lines_in(connection, "lastro_large_raw", _document_lines(document))
    run(
        connection,
        f"INSERT INTO lastro_large_want (loid, attributes) SELECT r.loid, {_WANTED} FROM lastro_large_raw AS r"
        " UNION ALL SELECT m.oid, NULL FROM pg_largeobject_metadata AS m"
        " WHERE NOT EXISTS (SELECT FROM lastro_large_raw AS r WHERE r.loid = m.oid)",
    )
    run(connection, "DROP TABLE lastro_large_raw")
    finish_tables(connection)


def insertion(view: SourceView) -> tuple[TableChange, ...]:
    """All large objects of a backup as a table's change, where they are made anew; nothing where it has none."""
    if DOCUMENT not in view.documents:
        return ()
    return (TableChange(MODULE, insert=sum(map(len, _document_lines(view.documents[DOCUMENT].read())))),)


def make_tables(connection: Connection) -> None:
    """Create the empty staging tables. `content`, `dressed`: whether pages, and whether attributes, are to be put back;
    `made` and `made_mark`: attributes and mark as the restore left them, for an undo."""
    run(connection, "CREATE TEMPORARY TABLE lastro_pages (loid oid, pageno int, data bytea) ON COMMIT DROP")
    run(
        connection,
        "CREATE TEMPORARY TABLE lastro_large_want (loid oid PRIMARY KEY, attributes jsonb, content bool NOT NULL DEFAULT true,"
        " dressed bool NOT NULL DEFAULT true, made jsonb, made_mark text) ON COMMIT DROP",
    )


def finish_tables(connection: Connection) -> None:
    """Index what was staged."""
    run(connection, "CREATE UNIQUE INDEX ON lastro_pages (loid, pageno)")
    run(connection, "ANALYZE lastro_pages, lastro_large_want")


def copy_lines_in(connection: Connection, table: str, batches: Iterable[list[bytes]]) -> None:
    """COPY lines of fields into a staging table."""
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
        for lines in batches:
            if lines:
                copy.write(b"\n".join(lines) + b"\n")


def in_transaction(connection: Connection) -> bool:
    return connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE


def own_transaction(connection: Connection, work: Callable[[], None]) -> None:
    """Do it in the caller's transaction, or in one of its own where the caller has none."""
    if in_transaction(connection):
        work()
        return
    begin(connection, "READ COMMITTED")
    work()
    run(connection, "COMMIT")


def attributes_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a backup's document says of an object, in the form of ATTRIBUTES.

    Documents of older versions have `grants` without grantors, which leave out what an owner has by itself where nothing was granted.
    """
    owner = stored["owner"]
    rights = stored.get("rights")
    if rights is None:
        own = [[owner, privilege, False] for privilege in ("SELECT", "UPDATE")]
        rights = [[owner, *each] for each in [json.loads(text) for text in stored["grants"]] or own]
    labels = stored.get("labels") or {}
    return {"owner": owner, "rights": rights, "comment": stored.get("comment"), "labels": labels}


def _document_lines(document: bytes) -> Iterator[list[bytes]]:
    """The document's objects as COPY lines. One is decoded at a time: there may be millions."""
    decoder, text, at = json.JSONDecoder(), document.decode(), 1
    lines: list[bytes] = []
    while (at := _next_value(text, at)) < len(text):
        stored, at = decoder.raw_decode(text, at)
        attributes = json.dumps(attributes_of(stored), ensure_ascii=False)
        # COPY wants backslashes doubled; JSON has no other character that it would escape.
        lines.append(b"%d\t%s" % (int(stored["oid"]), unencoded.encode(attributes).replace(b"\\", b"\\\\")))
        if len(lines) == OBJECTS_PER_COPY:
            yield lines
            lines = []
    yield lines


def _next_value(text: str, at: int) -> int:
    """Where the next element of an array begins; the text's length after the last."""
    while at < len(text) and text[at] in " \r\n\t,":
        at += 1
    return len(text) if text[at : at + 1] in ("]", "") else at
