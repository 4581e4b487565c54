"""Make the live large objects what was staged, and prove it.

What stays is changed where it lies: pages are written over, and cut off from where one must go or shrink. Only what has to lose its
very first page is made anew. An object is made under its owner's role, so that giving it away takes no lock: the server's
table of locks has room for some thousands, and every `lo_unlink`, `ALTER` and `COMMENT` takes one until the transaction ends.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.large_comparing import compare, decide
from connectors._postgresql.large_objects import ATTRIBUTES, PAGE_BYTES, own_transaction, stage_backup
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.roles import attempt
from engine.errors import TargetError
from engine.ports import TableView
from engine.progress import Progress

UNLINKED_MAX = 1000
"""Objects that are unlinked one by one, with a lock each; more only where the table of locks has ample room for them."""
BATCH = 1000
PASSES_MAX = 10
"""Grants depend on grants: each pass gives what those before have made possible."""

_CUTS = f"""
CREATE TEMPORARY TABLE lastro_large_cuts ON COMMIT DROP AS
SELECT c.loid, CASE WHEN p.loid IS NOT NULL THEN c.pageno ELSE q.pageno END AS first,
       CASE WHEN p.loid IS NOT NULL THEN c.pageno::int8 * {PAGE_BYTES}
            ELSE q.pageno::int8 * {PAGE_BYTES} + greatest(q.length - 1, 0) END AS bytes
  FROM (SELECT x.loid, min(x.pageno) AS pageno FROM lastro_large_pages AS x JOIN lastro_large_diff AS d ON d.loid = x.loid
         WHERE d.change = 'U' AND (x.was > coalesce(x.becomes, -1) OR x.becomes = 0) GROUP BY x.loid) AS c
  LEFT JOIN lastro_pages AS p ON p.loid = c.loid AND p.pageno = c.pageno
  LEFT JOIN LATERAL (SELECT b.pageno, length(b.data) AS length FROM lastro_pages AS b WHERE b.loid = c.loid AND b.pageno < c.pageno
                      ORDER BY b.pageno DESC LIMIT 1) AS q ON true
"""
"""Where an object is cut off: at the first page that goes or shrinks. A cut leaves a page behind, so it is made inside a
page that is wanted (and written again afterwards); where none is (`bytes` null) the object is made anew."""

_OPENED = "SELECT count(lo_truncate64(o.fd, o.bytes) + lo_close(o.fd)) FROM (SELECT lo_open(c.loid, 131072) AS fd, c.bytes FROM ({}) AS c OFFSET 0) AS o"
_EMPTY_PAGES = f"""
SELECT p.loid, p.pageno::int8 * {PAGE_BYTES} AS bytes FROM lastro_pages AS p JOIN lastro_large_diff AS d ON d.loid = p.loid
  LEFT JOIN lastro_large_cuts AS c ON c.loid = p.loid
 WHERE length(p.data) = 0 AND (d.change = 'I' OR c.loid IS NOT NULL AND (c.bytes IS NULL OR p.pageno >= c.first))
 ORDER BY p.loid, p.pageno
"""
_PUT = f"""
SELECT count(lo_put(p.loid, p.pageno::int8 * {PAGE_BYTES}, p.data)) FROM lastro_pages AS p JOIN lastro_large_diff AS d ON d.loid = p.loid
  LEFT JOIN lastro_large_cuts AS c ON c.loid = p.loid
  LEFT JOIN lastro_large_pages AS x ON x.loid = p.loid AND x.pageno = p.pageno
 WHERE length(p.data) > 0
   AND (d.change = 'I' OR d.change = 'U' AND (x.loid IS NOT NULL OR c.loid IS NOT NULL AND (c.bytes IS NULL OR p.pageno >= c.first)))
"""
_GONE = "SELECT loid FROM lastro_large_diff WHERE change = 'D' UNION ALL SELECT loid FROM lastro_large_cuts WHERE bytes IS NULL"
_NEW = (
    "SELECT d.loid, d.after ->> 'owner' AS owner FROM lastro_large_diff AS d LEFT JOIN lastro_large_cuts AS c"
    " ON c.loid = d.loid AND c.bytes IS NULL WHERE d.change = 'I' OR c.loid IS NOT NULL"
)
_UNDRESSED = (
    "CREATE TEMPORARY TABLE lastro_large_undressed ON COMMIT DROP AS SELECT d.loid, m.attributes AS live, d.after"
    f" FROM lastro_large_diff AS d JOIN ({ATTRIBUTES}) AS m ON m.loid = d.loid"
    " WHERE d.change IN ('I', 'U') AND m.attributes <> d.after"
)
_OWNERS = (
    "SELECT after ->> 'owner', array_agg(loid ORDER BY loid) FROM lastro_large_undressed"
    " WHERE live -> 'owner' <> after -> 'owner' GROUP BY 1"
)
_HAS = "EXISTS (SELECT FROM jsonb_array_elements(u.{} -> 'rights') AS e WHERE e = r)"
_SURPLUS = (
    f"SELECT q.grantee, array_agg(q.loid ORDER BY q.loid) FROM (SELECT DISTINCT u.loid, g ->> 1 FROM lastro_large_undressed AS u"
    " CROSS JOIN jsonb_array_elements(u.live -> 'rights') AS g WHERE EXISTS (SELECT FROM jsonb_array_elements(u.live -> 'rights') AS r"
    f" WHERE NOT {_HAS.format('after')})) AS q(loid, grantee) GROUP BY 1"
)
_MISSING = (
    "SELECT CASE WHEN r -> 0 = u.after -> 'owner' THEN '' ELSE r ->> 0 END, r ->> 1, r ->> 2, (r -> 3)::bool,"
    f" array_agg(u.loid ORDER BY u.loid) FROM lastro_large_undressed AS u CROSS JOIN jsonb_array_elements(u.after -> 'rights') AS r"
    f" WHERE NOT {_HAS.format('live')} AND (u.live -> 'owner' = u.after -> 'owner' OR r -> 1 <> u.after -> 'owner')"
    " GROUP BY 1, 2, 3, 4 ORDER BY 1, 4 DESC, 2, 3"
)
_UNSETTLED = """
SELECT count(*) FROM pg_largeobject AS l JOIN lastro_large_plan AS p ON p.loid = l.loid
 WHERE p.content AND p.change IN ('I', 'U', 'D') AND l.xmin <> (SELECT w.xmin FROM lastro_large_writer AS w)
   AND NOT EXISTS (SELECT FROM lastro_large_old AS o WHERE o.loid = l.loid AND o.pageno = l.pageno AND o.version = l.xmin)
"""
_CATALOGUES = (
    ("pg_largeobject", "loid"),
    ("pg_shdepend", "classid = 'pg_largeobject'::regclass AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND objid"),
    ("pg_description", "classoid = 'pg_largeobject'::regclass AND objoid"),
    ("pg_seclabel", "classoid = 'pg_largeobject'::regclass AND objoid"),
    ("pg_largeobject_metadata", "oid"),
)  # fmt: skip
"""What `lo_unlink` deletes, which is all that an object of no extension has."""


class LargeApplier:
    """Carries out what `large_comparing.decide` found, in the same transaction; `run` once."""

    def __init__(self, connection: Connection, warn: Callable[[str], None]) -> None:
        self._connection, self._warn = connection, warn
        self._warned = False

    def run(self, *, again: bool) -> None:
        """Apply and compare once more. `again`: the application's triggers have run since, and may have done some of it.

        Raises ConcurrentChange when the outcome is not what was staged.
        """
        if again:
            compare(self._connection)
        try:
            self._apply()
        except (psycopg.errors.UniqueViolation, psycopg.errors.UndefinedObject) as error:
            raise ConcurrentChange(f"large objects: {error.diag.message_primary}") from None
        except psycopg.errors.InternalError_ as error:
            if "concurrently" not in str(error):
                raise
            raise ConcurrentChange(f"large objects: {error.diag.message_primary}") from None
        self._check()

    def _apply(self) -> None:
        # Its row tells by which (sub)transaction the pages are written.
        run(self._connection, "CREATE TEMPORARY TABLE lastro_large_writer ON COMMIT DROP AS SELECT 1 AS one")
        run(self._connection, _CUTS)
        run(self._connection, "ANALYZE lastro_large_cuts")
        self._delete()
        self._create()
        run(self._connection, _OPENED.format("SELECT loid, bytes FROM lastro_large_cuts WHERE bytes IS NOT NULL"))
        run(self._connection, _OPENED.format(_EMPTY_PAGES))
        run(self._connection, _PUT)
        self._dress()

    def _check(self) -> None:
        compare(self._connection)
        wrong, undressed = rows(
            self._connection,
            "SELECT count(*) FILTER (WHERE change <> 'U' OR content), count(*) FILTER (WHERE change = 'U' AND NOT content)"
            " FROM lastro_large_diff WHERE change NOT IN ('=', 'W')",
        )[0]
        if wrong or (undressed and not self._warned):
            raise ConcurrentChange(f"{wrong + undressed} large objects are not what was decided")

    def _try(self, statements: Sequence[str], what: str) -> bool:
        """Run statements that may fail without harm, all or none; say so when they do, if there is `what` to say."""

        def keep(message: str) -> None:
            if what:
                self._warned = True
                self._warn(message)

        run(self._connection, "SAVEPOINT lastro_object")
        done = all(attempt(self._connection, sql, keep, what) for sql in statements)
        if not done:
            run(self._connection, "ROLLBACK TO SAVEPOINT lastro_object")
        run(self._connection, "RELEASE SAVEPOINT lastro_object")
        return done

    def _as(self, role: str, statements: Sequence[str]) -> list[str]:
        """The statements under another role, and back to ours."""
        before = value(self._connection, "SELECT current_setting('role')")
        back = ident(before) if before != "none" else "NONE"
        return [f"SET LOCAL ROLE {ident(role)}", *statements, f"SET LOCAL ROLE {back}"]

    def _batches(self, query: str) -> Iterator[list[tuple[Any, ...]]]:
        """Rows of a query that gives `loid` first, by loid, some at a time."""
        last = -1
        while True:
            found = rows(
                self._connection, f"SELECT * FROM ({query}) AS q WHERE q.loid::int8 > {last} ORDER BY 1 LIMIT {BATCH}"
            )
            if not found:
                return
            last = int(found[-1][0])
            yield found

    # -------------------------------------------------------- whole objects

    def _delete(self) -> None:
        count = int(value(self._connection, f"SELECT count(*) FROM ({_GONE}) AS gone"))
        if count <= max(UNLINKED_MAX, self._lock_room() // 4):
            run(self._connection, f"SELECT count(lo_unlink(g.loid)) FROM ({_GONE}) AS g")
            return
        if not value(self._connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
            raise TargetError(
                f"{count} large objects are to be deleted at once, and the server has room for {self._lock_room()} locks, one each",
                hint="nothing was changed; raise max_locks_per_transaction until there is room for four times as many"
                " and restart the server, or restore as a superuser",
            )
        for table, condition in _CATALOGUES:
            run(self._connection, f"DELETE FROM {table} WHERE {condition} IN ({_GONE})")

    def _lock_room(self) -> int:
        """How many locks the server has set memory aside for; all its sessions share it."""
        return int(
            value(
                self._connection,
                "SELECT current_setting('max_locks_per_transaction')::int8"
                " * (current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8)",
            )
        )

    def _create(self) -> None:
        own = value(self._connection, "SELECT current_user::text")
        query = f"SELECT owner, array_agg(loid ORDER BY loid) FROM ({_NEW}) AS n GROUP BY owner ORDER BY owner"
        for owner, loids in rows(self._connection, query):
            made = [f"SELECT count(lo_create(o)) FROM unnest(ARRAY[{some}]::oid[]) AS o" for some in _listed(loids)]
            if owner != own and self._try(self._as(owner, made), ""):
                continue
            for sql in made:
                run(self._connection, sql)

    # -------------------------------------------------------- attributes

    def _dress(self) -> None:
        """Owners, rights, comments, labels of what differs in them."""
        self._find_undressed()
        owners = rows(self._connection, _OWNERS)
        for owner, loids in owners:
            given = [f"ALTER LARGE OBJECT {int(loid)} OWNER TO {ident(owner)}" for loid in loids]
            self._try(given, f"the owner {owner} of {_named(loids)} is not kept")
        if owners:
            self._find_undressed()
        if self._revoke():
            self._find_undressed()
        self._grant()
        described = "live -> 'comment' <> after -> 'comment' OR live -> 'labels' <> after -> 'labels'"
        for found in self._batches(f"SELECT loid, live, after FROM lastro_large_undressed WHERE {described}"):
            for loid, live, after in found:
                self._describe(int(loid), live, after)

    def _find_undressed(self) -> None:
        run(self._connection, "DROP TABLE IF EXISTS lastro_large_undressed")
        run(self._connection, _UNDRESSED)

    def _describe(self, loid: int, live: dict[str, Any], after: dict[str, Any]) -> None:
        if live["comment"] != after["comment"]:
            comment = "NULL" if after["comment"] is None else literal(after["comment"])
            run(self._connection, f"COMMENT ON LARGE OBJECT {loid} IS {comment}")
        for provider in {*live["labels"], *after["labels"]}:
            was, label = live["labels"].get(provider), after["labels"].get(provider)
            if was != label:
                text = "NULL" if label is None else literal(label)
                sql = f"SECURITY LABEL FOR {ident(provider)} ON LARGE OBJECT {loid} IS {text}"
                self._try([sql], f"a security label of large object {loid} is not kept")

    def _revoke(self) -> bool:
        """Take everything from whoever has something on an object of which a right has to go; say whether there was one."""
        surplus = rows(self._connection, _SURPLUS)
        for grantee, loids in surplus:
            for some in _listed(loids):
                sql = f"REVOKE ALL ON LARGE OBJECT {some} FROM {_grantee(grantee)} CASCADE"
                self._try([sql], f"rights of {grantee} on {_named(loids)} are not taken back")
        return bool(surplus)

    def _grant(self) -> None:
        """Grant what is missing, in as many passes as grants depend on one another; what does not succeed is said at the end."""
        missing = rows(self._connection, _MISSING)
        for last in (False, True):
            for _ in range(PASSES_MAX):
                failed = [each for each in missing if not self._give(*each, say=last)]
                if last or len(failed) == len(missing):
                    break
                missing = failed

    def _give(
        self, grantor: str, grantee: str, privilege: str, option: bool, loids: Sequence[int], *, say: bool
    ) -> bool:
        assert privilege.isalpha(), "privileges are words of PostgreSQL's own"
        more = " WITH GRANT OPTION" if option else ""
        grants = [f"GRANT {privilege} ON LARGE OBJECT {some} TO {_grantee(grantee)}{more}" for some in _listed(loids)]
        # Without a grantor it is the owner, for whom every member of it grants.
        what = f"{privilege} of {grantee} on {_named(loids)} is not kept" if say else ""
        return self._try(self._as(grantor, grants) if grantor else grants, what)


def _listed(loids: Sequence[int]) -> Iterator[str]:
    for first in range(0, len(loids), BATCH):
        yield ", ".join(str(int(loid)) for loid in loids[first : first + BATCH])


def _named(loids: Sequence[int]) -> str:
    return f"{'large objects' if len(loids) > 1 else 'large object'} {', '.join(map(str, loids[:3]))}" + (
        f" and {len(loids) - 3} more" if len(loids) > 3 else ""
    )


def _grantee(name: str) -> str:
    return "PUBLIC" if name == "public" else ident(name)


def check_settled(connection: Connection) -> None:
    """The last look before the commit: TargetError when somebody else wrote into an object that was changed."""
    if value(connection, _UNSETTLED):
        raise TargetError(
            "large objects were written to by somebody else while they were restored",
            hint="nothing was changed; stop the tenant's application during the restore and run it again",
        )


def make_large_objects(
    connection: Connection,
    pages: TableView | None,
    document: bytes,
    warn: Callable[[str], None],
    progress: Progress,
) -> None:
    """Make a new database's large objects what the backup holds, in one transaction of its own or the caller's."""

    def work() -> None:
        stage_backup(connection, pages, document, progress)
        decide(connection, hold=True, undo=False)
        LargeApplier(connection, warn).run(again=False)

    own_transaction(connection, work)
