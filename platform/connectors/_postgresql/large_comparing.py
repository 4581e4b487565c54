"""Compare staged large objects with the live ones, page by page, and bind what would change.

    lastro_large_pages  pages that differ, with their lengths (null: there is none)
    lastro_large_diff   objects: insert, update, delete, same, or withheld (only its attributes are known, and it is gone)
    lastro_large_old    pages of objects that change, as they were; locked where the role may
    lastro_large_plan   what was decided: the diff with both marks and whether somebody changed the object since

A *mark* is a SHA-256 over an object's pages, in blocks so that no object is too large to be hashed in bounded memory.
"""

import contextlib
import hashlib
from dataclasses import dataclass

from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.large_objects import ATTRIBUTES, MODULE, PAGE_BYTES
from connectors._postgresql.part import read_lines
from engine.errors import TargetDenied
from engine.plans import SAMPLE_VALUE_CHARACTERS, RowSample, SampleChange
from engine.ports import TableChange

BLOCK_PAGES = 4096
"""Pages (8 MiB) whose hashes are hashed together; an object of 4 TB, PostgreSQL's limit, has 524,288 such blocks."""
NAMES_SHOWN_MAX = 5

_PAGES = """
CREATE TEMPORARY TABLE lastro_large_pages ON COMMIT DROP AS
SELECT coalesce(l.loid, p.loid) AS loid, coalesce(l.pageno, p.pageno) AS pageno, length(l.data) AS was, length(p.data) AS becomes
  FROM (SELECT l.* FROM pg_largeobject AS l JOIN lastro_large_want AS w ON w.loid = l.loid
         WHERE w.content AND w.attributes IS NOT NULL) AS l
  FULL JOIN lastro_pages AS p ON p.loid = l.loid AND p.pageno = l.pageno
 WHERE l.data IS DISTINCT FROM p.data
"""
_DIFF = f"""
CREATE TEMPORARY TABLE lastro_large_diff ON COMMIT DROP AS
SELECT w.loid,
       CASE WHEN w.attributes IS NULL THEN CASE WHEN m.loid IS NULL THEN '=' ELSE 'D' END
            WHEN m.loid IS NULL THEN CASE WHEN w.content THEN 'I' ELSE 'W' END
            WHEN p.loid IS NOT NULL OR w.dressed AND m.attributes <> w.attributes THEN 'U' ELSE '=' END AS change,
       p.loid IS NOT NULL OR (w.attributes IS NULL) <> (m.loid IS NULL) AS content,
       m.attributes AS before,
       CASE WHEN w.dressed OR m.loid IS NULL OR w.attributes IS NULL THEN w.attributes ELSE m.attributes END AS after,
       w.content AS touched, w.dressed, w.made, w.made_mark
  FROM lastro_large_want AS w
  LEFT JOIN ({ATTRIBUTES}) AS m ON m.loid = w.loid
  LEFT JOIN (SELECT DISTINCT loid FROM lastro_large_pages) AS p ON p.loid = w.loid
"""
_OLD = (
    "CREATE TEMPORARY TABLE lastro_large_old ON COMMIT DROP AS SELECT l.loid, l.pageno, l.data, l.xmin AS version"
    " FROM pg_largeobject AS l JOIN lastro_large_diff AS d ON d.loid = l.loid WHERE d.content AND d.change IN ('U', 'D')"
)
_MARKS = (
    "SELECT loid, encode(sha256(string_agg(block, ''::bytea ORDER BY number)), 'hex') AS mark FROM"
    f" (SELECT loid, pageno / {BLOCK_PAGES} AS number,"
    " sha256(string_agg(int4send(pageno) || sha256(data), ''::bytea ORDER BY pageno)) AS block FROM {} GROUP BY 1, 2) AS blocks"
    " GROUP BY loid"
)
_WANTED_PAGES = "(SELECT p.* FROM lastro_pages AS p JOIN lastro_large_diff AS d ON d.loid = p.loid WHERE d.change IN ('I', 'U')) AS p"
_PLAN = f"""
CREATE TEMPORARY TABLE lastro_large_plan ON COMMIT DROP AS
SELECT d.loid, d.change, d.content, d.before, d.after, coalesce(b.mark, '') AS before_mark, coalesce(a.mark, '') AS after_mark,
       d.change <> '=' AND ((d.before IS NULL) <> (d.made IS NULL)
         OR d.before IS NOT NULL AND (d.dressed AND d.before <> d.made
              OR d.touched AND coalesce(CASE WHEN d.content THEN b.mark ELSE a.mark END, '') <> d.made_mark)) AS since
  FROM lastro_large_diff AS d
  LEFT JOIN ({_MARKS.format("lastro_large_old")}) AS b ON b.loid = d.loid
  LEFT JOIN ({_MARKS.format(_WANTED_PAGES)}) AS a ON a.loid = d.loid
"""
_COUNTS = "SELECT change, count(*), count(*) FILTER (WHERE since) FROM lastro_large_plan GROUP BY change"
_LINES = (
    "SELECT change, content, loid, before, before_mark, after, after_mark FROM lastro_large_plan"
    " WHERE change IN ('I', 'U', 'D') ORDER BY loid"
)
_STRANGERS = """
SELECT p.loid, p.before ->> 'owner', count(*) OVER () FROM lastro_large_plan AS p
  JOIN pg_largeobject_metadata AS m ON m.oid = p.loid
 WHERE p.change IN ('U', 'D') AND NOT pg_has_role(m.lomowner, 'USAGE') ORDER BY 1 LIMIT 5
"""


@dataclass(frozen=True, slots=True)
class LargeChange:
    """What becomes of the large objects. `mark` is a digest of every change, "" where there is none; `since` names objects
    that somebody changed after the restore which is undone."""

    change: TableChange
    mark: str
    since: tuple[str, ...] = ()


def compare(connection: Connection) -> None:
    """Find what differs now; again as often as it is called."""
    run(connection, "DROP TABLE IF EXISTS lastro_large_pages, lastro_large_diff")
    run(connection, _PAGES)
    run(connection, "CREATE INDEX ON lastro_large_pages (loid, pageno)")
    run(connection, "ANALYZE lastro_large_pages")
    run(connection, _DIFF)
    run(connection, "CREATE UNIQUE INDEX ON lastro_large_diff (loid)")
    run(connection, "ANALYZE lastro_large_diff")


def decide(connection: Connection, *, hold: bool, undo: bool) -> LargeChange:
    """Compare, keep and with `hold` lock what will change, and count. Raises TargetDenied for objects of roles that ours is no member of."""
    compare(connection)
    locks = hold and bool(value(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
    # Only a superuser may lock rows of a catalogue. What happens to others' pages meanwhile is found by comparing again.
    run(connection, _OLD + (" FOR UPDATE OF l" if locks else ""))
    if locks:
        run(
            connection,
            "SELECT count(*) FROM (SELECT FROM pg_largeobject_metadata AS m JOIN lastro_large_diff AS d ON d.loid = m.oid"
            " WHERE d.change IN ('U', 'D') FOR UPDATE OF m) AS locked",
        )
    run(connection, "CREATE INDEX ON lastro_large_old (loid, pageno)")
    run(connection, "ANALYZE lastro_large_old")
    run(connection, _PLAN)
    run(connection, "CREATE UNIQUE INDEX ON lastro_large_plan (loid)")
    run(connection, "ANALYZE lastro_large_plan")
    _refuse_strangers(connection)
    return _counted(connection, undo=undo)


def _counted(connection: Connection, *, undo: bool) -> LargeChange:
    counts = {change: (number, since) for change, number, since in rows(connection, _COUNTS)}
    done = {change: counts.get(change, (0, 0))[0] for change in "IUD=W"}
    change = TableChange(
        MODULE, insert=done["I"], update=done["U"], delete=done["D"], unchanged=done["="], withheld=done["W"],
        conflicts=sum(since for _, since in counts.values()) if undo else 0,
    )  # fmt: skip
    mark = _digest(connection) if done["I"] or done["U"] or done["D"] else ""
    return LargeChange(change, mark, _changed_since(connection) if undo and change.conflicts else ())


def _digest(connection: Connection) -> str:
    digest = hashlib.sha256()
    with contextlib.closing(read_lines(connection, _LINES)) as batches:
        for lines in batches:
            digest.update(b"\n".join(lines) + b"\n")
    return digest.hexdigest()


def _changed_since(connection: Connection) -> tuple[str, ...]:
    found = rows(
        connection,
        f"SELECT p.loid::text FROM lastro_large_plan AS p WHERE p.since ORDER BY p.loid LIMIT {NAMES_SHOWN_MAX + 1}",
    )
    names = [name for (name,) in found]
    return (*names[:NAMES_SHOWN_MAX], *(["…"] if len(names) > NAMES_SHOWN_MAX else []))


def _refuse_strangers(connection: Connection) -> None:
    found = rows(connection, _STRANGERS)
    if found:
        shown, rest = ", ".join(f"{number} of {owner}" for number, owner, _ in found), found[0][2] - len(found)
        more = f" and {rest} more" if rest else ""
        raise TargetDenied(
            f"the role may not change large objects that belong to other roles: {shown}{more}",
            hint="nothing was changed; restore as a superuser, or GRANT the owning role to the restoring one",
        )


# ---------------------------------------------------------------- samples

_RANKED = "CASE WHEN since THEN 0 WHEN change = 'D' THEN 2 WHEN change = 'U' THEN 3 WHEN change = 'I' THEN 4 ELSE 5 END"
_KINDS: dict[int, SampleChange] = {0: "conflict", 2: "delete", 3: "update", 4: "insert", 5: "withheld"}
_SIZE = f"(SELECT (p.pageno::int8 * {PAGE_BYTES} + length(p.data))::text FROM {{}} AS p WHERE p.loid = s.loid ORDER BY p.pageno DESC LIMIT 1)"
_SAMPLES = f"""
SELECT s.rank, s.change, s.content, s.loid::text, s.before, s.before_mark, coalesce({_SIZE.format("pg_largeobject")}, '0'),
       s.after, s.after_mark, CASE WHEN s.content THEN coalesce({_SIZE.format("lastro_pages")}, '0') END
  FROM (SELECT p.*, CASE {{undo}} WHEN true THEN {_RANKED} ELSE {_RANKED.replace("since", "false")} END AS rank
          FROM lastro_large_plan AS p WHERE change <> '=') AS s
 ORDER BY s.rank, s.loid LIMIT {{limit}}
"""


def take_large_samples(connection: Connection, *, limit: int, undo: bool) -> tuple[RowSample, ...]:
    """At most `limit` objects that change, those first that somebody changed since."""
    if limit <= 0:
        return ()
    found = []
    for rank, change, content, loid, *sides in rows(connection, _SAMPLES.format(limit=limit, undo=str(undo).lower())):
        before, after = _side(*sides[:3], content=content), _side(*sides[3:], content=content)
        if before is not None and after is not None and not content:
            after["bytes"] = before["bytes"]
        fields = tuple(name for name in before if before[name] != after[name]) if before and after else ()
        because = "it is gone, and only its attributes were kept" if change == "W" else ""
        found.append(RowSample(_KINDS[rank], {"oid": loid}, before, after if change != "W" else None, fields, because))
    return tuple(found)


def _side(
    attributes: dict[str, object] | None, mark: str, size: str | None, *, content: bool
) -> dict[str, str | None] | None:
    if attributes is None:
        return None
    shown: dict[str, str | None] = {"bytes": size, "content": mark if content else "same"}
    for name in ("owner", "rights", "comment", "labels"):
        found = attributes[name]
        shown[name] = str(found)[:SAMPLE_VALUE_CHARACTERS] if found or name == "owner" else None
    return shown
