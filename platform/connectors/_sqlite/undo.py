"""Take a restore back from its change image: put the rows there that it changed, if nobody changed them since.

The image's rows `after` are what the target must hold; the rows `before` are what it gets. Both are laid into temporary tables
and read in step with the target's, so that an undo is a change set like any other: it is applied, checked and
written into an image of its own by the same code, and can be taken back in turn.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any

from connectors._sqlite.applying import Definitions, by_tables, rows_apply, rows_check, transaction_begin, violations
from connectors._sqlite.catalog import Catalog, Table, catalog_read, quote
from connectors._sqlite.changes import DONE, TableChanges, Verdict
from connectors._sqlite.connect import CACHE_KIB
from connectors._sqlite.inplace import digest_check, sequences_of
from connectors._sqlite.lines import insert_all, tuples_of
from connectors._sqlite.plan import TablePlan, functions_register, plan_by, rows_select
from connectors._sqlite.prepared import IMAGE_VERSION, FileIdentity, PreparedSqlite
from connectors._sqlite.read import Layout
from connectors._sqlite.references import References, relations_of
from connectors._sqlite.samples import samples_of
from connectors._sqlite.scope import Scope
from connectors._sqlite.scoping import scope_of
from connectors._sqlite.stored import catalog_of
from connectors._sqlite.windows import Batch, Side, compare, windows
from engine.errors import SchemaMismatch, SourceUnsupported, StalePlan, TargetError
from engine.plans import ChangeDigest, Preview
from engine.ports import Check, ImageView, KeyKind, RestoreReport, RestoreRequest, TableChange
from engine.progress import Progress

CONFLICT = Verdict(act=True, conflict=True)
SINCE = "rows changed since the restore"
DANGLING = "references would lead to rows that do not exist"


@dataclass
class _Rows:
    """The rows of one table in an image, laid into temporary tables."""

    header: Mapping[str, Any]
    before: str
    after: str


@dataclass
class UndoPlan:
    """What an undo would do; its rows lie in temporary tables of the connection."""

    connection: sqlite3.Connection
    head: Mapping[str, Any] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=lambda: Catalog({}, []))
    missing: dict[str, Table] = field(default_factory=dict)
    rows: dict[str, _Rows] = field(default_factory=dict)
    changes: list[TableChanges] = field(default_factory=list)
    settled: dict[str, int] = field(default_factory=dict)
    """By table rows that are already as before, though the restore had changed them."""
    digest: str = ""
    scope: Scope | None = None

    def counts(self) -> tuple[TableChange, ...]:
        found = []
        for each in self.changes:
            counts = each.counts()
            found.append(replace(counts, conflicts=counts.conflicts + self.settled[each.name]))
        return tuple(found)

    @property
    def conflicts(self) -> int:
        return sum(each.conflicts for each in self.counts())


class Undo:
    """One undo on an open connection (text as bytearray)."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        image: ImageView,
        layout: Layout,
        request: RestoreRequest,
        progress: Progress,
    ) -> None:
        self._connection, self._image, self._layout = connection, image, layout
        self._request, self._progress = request, progress

    # ------------------------------------------------ plan

    def plan(self) -> UndoPlan:
        """Inside a transaction. Raises SourceUnsupported, SchemaMismatch, TargetError, DamageError."""
        self._progress.phase("compare")
        self._connection.execute(f"PRAGMA temp.cache_size = -{CACHE_KIB}")
        plan = UndoPlan(self._connection)
        plan.catalog = catalog_read(self._connection)
        functions_register(self._connection, plan.catalog.pragmas["encoding"])
        for header, batches in self._image.sections():
            if header["rows"] == "schema":
                self._head(plan, header)
            else:
                self._stage(plan, header, batches)
        if not plan.head:
            raise SourceUnsupported("the change image is none of a SQLite database", hint="restore the safety backup")
        for number, rows in enumerate(plan.rows.values()):
            plan.changes.append(self._compare(plan, rows, number))
        self._foreign(plan)
        digest = ChangeDigest()
        for changes in plan.changes:
            changes.digest(digest)
        plan.digest = digest.hexdigest()
        return plan

    def _head(self, plan: UndoPlan, header: Mapping[str, Any]) -> None:
        if header.get("kind") != "sqlite" or header.get("version") != IMAGE_VERSION:
            raise SourceUnsupported("the change image is none of a SQLite database that this version reads")
        if header["made_file"]:
            raise SourceUnsupported(
                "the restore made the whole file, which cannot be taken back row by row",
                hint="stop the application and remove the file; before the restore there was none",
            )
        if (header["tenant_column"], header["tenant_value"]) != (self._layout.tenant_column, self._layout.tenant_value):
            raise TargetError(
                "the change image belongs to another tenant's rows", hint="set the source back to what it was"
            )
        for each in (*header["created"], *header["dropped"]):
            if each["type"] == "table" and each["sql"].lstrip().upper().startswith("CREATE VIRTUAL"):
                raise SourceUnsupported(
                    f"the restore made the virtual table {each['name']}, which cannot be taken back row by row",
                    hint="drop it yourself, or restore the safety backup",
                )
        plan.head = header
        plan.missing = {
            name: table
            for name, table in catalog_of(header["dropped"]).tables.items()
            if name not in plan.catalog.tables
        }

    def _table(self, plan: UndoPlan, header: Mapping[str, Any]) -> Table:
        table = plan.catalog.tables.get(header["name"]) or plan.missing.get(header["name"])
        if table is None:
            raise SchemaMismatch(f"table {header['name']} is gone since the restore", hint="restore the safety backup")
        names = header["columns"][1:] if header["rowid"] else header["columns"]
        if {*names} != {each.name for each in table.stored} or bool(table.rowid) != header["rowid"]:
            raise SchemaMismatch(
                f"table {table.name} has other columns since the restore", hint="restore the safety backup"
            )
        return table

    def _stage(self, plan: UndoPlan, header: Mapping[str, Any], batches: Iterator[list[bytes]]) -> None:
        table = self._table(plan, header)
        number = len(plan.rows) if header["name"] not in plan.rows else [*plan.rows].index(header["name"])
        rows = plan.rows.setdefault(
            header["name"], _Rows(header, f"temp.lastro_before_{number}", f"temp.lastro_after_{number}")
        )
        place = rows.before if header["rows"] == "before" else rows.after
        names = [quote(each) for each in _columns(header)]
        if header["rows"] == "before":
            for each in (rows.before, rows.after):
                key = "" if header["rowid"] else f", PRIMARY KEY ({', '.join(map(quote, header['key']))})"
                self._connection.execute(f"DROP TABLE IF EXISTS {each}")
                self._connection.execute(f"CREATE TABLE {each} ({', '.join(names)}{key})")
        into = f"{place} ({', '.join([*([table.rowid or ''] if header['rowid'] else []), *names])})"
        for lines in batches:
            self._progress.check()
            insert_all(self._connection, into, tuples_of(lines))

    # ------------------------------------------------ rows

    def _compare(self, plan: UndoPlan, rows: _Rows, number: int) -> TableChanges:
        header, exists = rows.header, rows.header["name"] in plan.catalog.tables
        table = plan.catalog.tables[header["name"]] if exists else plan.missing[header["name"]]
        key = self._key(table, rows)
        select = _plan(table, _columns(header), key)
        changes = TableChanges(
            self._connection, number, table.name, header["module"], table, select.columns, (), select.key.synthetic,
            handled=not key, exists=exists, placed=self._kept_places(table), keys=table.primary,
        )  # fmt: skip
        sides = [
            Side(_placed(self._connection, select, rows.before), select.key),
            Side(self._live(plan, select, rows, key) if exists else iter(()), select.key),
            Side(_placed(self._connection, select, rows.after), select.key),
        ]
        plan.settled[table.name] = 0
        for window in windows(sides):
            differing, equal = compare(select.key, window)
            plan.settled[table.name] += equal
            changes.unchanged += equal
            changes.store(differing, [DONE if each.before == (each.base or b"") else CONFLICT for each in differing])
        if exists and not changes.placed:
            changes.move_from_taken()
        return changes

    def _kept_places(self, table: Table) -> bool:
        """Whether rowids belong to what a row is. SQLite gives out implicit ones again, to any tenant, and VACUUM moves them."""
        return self._layout.whole or not table.rowid or bool(table.alias)

    def _key(self, table: Table, rows: _Rows) -> tuple[str, ...]:
        """Columns by which rows of the image are found again; empty for their rowids."""
        if not table.rowid:
            return tuple(rows.header["key"])
        if self._kept_places(table) or not table.primary:
            return ()
        null = " OR ".join(f"{quote(each)} IS NULL" for each in table.primary)
        found = self._connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM {rows.before} WHERE {null}) OR EXISTS (SELECT 1 FROM {rows.after} WHERE {null})"
        ).fetchone()[0]
        return () if found else tuple(table.primary)

    def _live(self, plan: UndoPlan, select: TablePlan, rows: _Rows, key: Sequence[str]) -> Iterator[Batch]:
        """The target's rows of the image's keys, with their rowids and whole lines."""
        table, images = select.table, (rows.before, rows.after)
        keys = ", ".join(map(quote, key)) or str(table.rowid)
        where = f"({keys}) IN ({' UNION ALL '.join(f'SELECT {keys} FROM {each}' for each in images)})"
        if not key and not self._kept_places(table):
            where = self._still_there(plan, select, rows)
        for lines, handles in rows_select(self._connection, RLock(), select, where=where, handle=True):
            yield lines, [*zip(handles, lines, strict=True)]

    def _still_there(self, plan: UndoPlan, select: TablePlan, rows: _Rows) -> str:
        """Rows that only their rowids tell apart: not those that somebody made since and that were given a rowid again."""
        live, rowid = f"main.{quote(select.table.name)}", select.table.rowid
        equal = " AND ".join(f"i.{quote(each)} IS {live}.{quote(each)}" for each in select.columns)
        same = [
            f"EXISTS (SELECT 1 FROM {each} i WHERE i.{rowid} = {live}.{rowid} AND {equal})"
            for each in (rows.before, rows.after)
        ]
        inside = f"NOT ({self._scope(plan).outside(select.table.name)})"
        return f"{' OR '.join(same)} OR ({rowid} IN (SELECT {rowid} FROM {rows.after}) AND {inside})"

    def _scope(self, plan: UndoPlan) -> Scope:
        plan.scope = plan.scope or scope_of(self._connection, plan.catalog, self._layout)
        return plan.scope

    def _foreign(self, plan: UndoPlan) -> None:
        """Raise when a row that would be overwritten or deleted is another tenant's by now."""
        if self._layout.whole:
            return
        scope = self._scope(plan)
        for changes in plan.changes:
            table = changes.table
            own = table.rowid or ", ".join(map(quote, table.primary))
            theirs = "handle" if table.rowid else ", ".join(str(changes.value(each, "d")) for each in table.primary)
            sql = (
                f"SELECT count(*) FROM {changes.live} WHERE ({own}) IN "
                f"(SELECT {theirs} FROM {changes.temp} d WHERE conflict = 1 AND op > 0) AND {scope.outside(table.name)}"
            )
            if count := self._connection.execute(sql).fetchone()[0]:
                raise TargetError(
                    f"{count} rows of {table.name} that the undo would change belong to another tenant now",
                    hint="restore the safety backup with a merge",
                )

    # ------------------------------------------------ what it comes to

    def preview(self) -> Preview:
        plan = self.plan()
        warnings = [f"{plan.conflicts} {SINCE}"] if plan.conflicts else []
        for relation, count in self._references(plan).broken():
            if f"{relation.child.name} -> {relation.parent.name}" not in plan.head["healed"]:
                warnings.append(f"{count} {DANGLING}: {relation.child.name} -> {relation.parent.name}")
        return Preview(
            digest=plan.digest,
            tables=plan.counts(),
            samples={each.name: shown for each in plan.changes if (shown := samples_of(each, self._request.samples))},
            warnings=tuple(warnings),
        )

    def prepare(self, file: FileIdentity) -> PreparedSqlite:
        """Do everything but the commit; the caller rolls back when this fails."""
        connection = self._connection
        transaction_begin(connection)
        file.check()
        plan = self.plan()
        if plan.conflicts and self._request.digest != plan.digest:
            raise StalePlan(f"{plan.conflicts} {SINCE}", hint="look at the preview of the undo, and confirm it")
        digest_check(plan.digest, self._request)
        relations = self._references(plan).relations
        broken, sequences = violations(connection, relations), sequences_of(connection)
        self._progress.phase("apply")
        definitions = Definitions(connection)
        for each in plan.head["dropped"]:
            if each["type"] == "table" and each["name"] in plan.missing:
                definitions.create(each)
        definitions.silence(each.name for each in plan.changes)
        counted = rows_apply(connection, plan.changes, self._progress)
        checks = rows_check(plan.changes)
        kept = self._definitions(plan, definitions)
        self._sequences(plan, sequences)
        definitions.speak()
        left = violations(connection, relations)
        kept += self._dangling(plan, by_tables(left) - by_tables(broken))
        now = sequences_of(connection)
        pairs = {name: (sequences.get(name), now.get(name)) for name in {*sequences, *now}}
        report = RestoreReport(
            tables=plan.counts(), checks=(*checks, Check("schema_compatibility", True, [], [])),
            neighbours={"tables": counted}, warnings=tuple(kept), digest=plan.digest,
        )  # fmt: skip
        return PreparedSqlite(
            connection,
            file,
            self._layout,
            plan.changes,
            report,
            definitions.created,
            definitions.dropped,
            pairs,
            by_tables(broken) - by_tables(left),
        )

    def _dangling(self, plan: UndoPlan, broken: Counter[str]) -> list[str]:
        """References that the undo breaks and that were not broken before the restore have to be confirmed."""
        more = broken - Counter(plan.head["healed"])
        if not more:
            return []
        message = f"{more.total()} {DANGLING}: {', '.join(sorted(more))}"
        if self._request.digest != plan.digest:
            raise StalePlan(message, hint="look at the preview of the undo, and confirm it")
        return [message]

    def _references(self, plan: UndoPlan) -> References:
        """Refuse what cannot be put back. Raises TargetError."""
        by_name = {each.name: each for each in plan.changes}
        relations = relations_of(plan.catalog, by_name, plan.missing)
        references = References(self._connection, by_name, relations, self._progress.check)
        for changes in plan.changes:
            for select, shown in references.all_collisions(changes):
                if references.count(select):
                    raise TargetError(
                        f"table {changes.name}: a row to be put back collides with one made since: {shown}",
                        hint="restore the safety backup with a merge",
                    )
        return references

    def _definitions(self, plan: UndoPlan, definitions: Definitions) -> list[str]:
        """Drop what the restore made, and make what an undo before had dropped; a table that has rows by now stays."""
        kept = []
        for each in reversed(plan.head["created"]):
            if each["type"] == "table" and self._filled(each["name"]):
                kept.append(f"table {each['name']}, which the restore had made, has rows by now and stays")
                continue
            if each["name"] in definitions.names():
                definitions.drop(each)
                definitions.silenced.pop(each["name"], None)
            elif each["name"] in definitions.silenced:
                del definitions.silenced[each["name"]]
                definitions.dropped.append(each)
        for each in plan.head["dropped"]:
            if each["name"] not in definitions.names():
                definitions.create(each)
        # An image lists what was made in the order of making.
        definitions.dropped.reverse()
        return kept

    def _filled(self, table: str) -> bool:
        return self._connection.execute(f"SELECT 1 FROM main.{quote(table)} LIMIT 1").fetchone() is not None

    def _sequences(self, plan: UndoPlan, found: Mapping[str, int]) -> None:
        """Put back what AUTOINCREMENT had given out, where `found` says that it has given out nothing since."""
        for name, (before, after) in plan.head["sequences"].items():
            if found.get(name) != after:
                continue
            self._connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
            if before is not None:
                self._connection.execute("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", (name, before))


def _columns(header: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(header["columns"][1:] if header["rowid"] else header["columns"])


def _plan(table: Table, columns: Sequence[str], key: Sequence[str]) -> TablePlan:
    """Rows in the order of their rowids, or of the hashes of their keys."""
    if not key:
        return plan_by(table, "rowid", ("int",), (), columns, None)
    kinds: tuple[KeyKind, ...] = tuple("hash" for _ in key)
    return plan_by(table, "primary", kinds, tuple(key), columns, None)


def _placed(connection: sqlite3.Connection, plan: TablePlan, place: str) -> Iterator[Batch]:
    for lines, _ in rows_select(connection, RLock(), replace(plan, place=place)):
        yield lines, [None] * len(lines)
