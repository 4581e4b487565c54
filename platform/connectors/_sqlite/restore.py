"""Make a SQLite database what a backup holds: a diff, applied in one transaction.

Changes of a table are first collected in a temporary table, because a table must not change under the
cursor that reads it, and applied as deletions followed by insertions, so that two rows that swap a unique
value do not collide on the way. Triggers are dropped and created again inside the transaction, so that
none fires on a restored row; foreign keys are off and are checked before the commit.
"""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

from connectors._sqlite.catalog import Catalog, Table, catalog_read, quote
from connectors._sqlite.diff import TableDiff, strays_of
from connectors._sqlite.lines import insert_all, tuples_of
from connectors._sqlite.plan import TablePlan, functions_register, plan_again, plan_make, rows_select
from connectors._sqlite.read import SCHEMA_DOCUMENT, Layout
from connectors._sqlite.scope import Scope, scope_find
from engine.errors import SchemaMismatch, TargetError
from engine.faults import kill_point
from engine.ports import Check, RestoreReport, RestoreRequest, SourceView, TableChange, TableView
from engine.progress import Progress
from engine.table_runs import table_digest


@dataclass(frozen=True, slots=True)
class StoredSchema:
    """The schema document of a backup."""

    objects: list[dict[str, str]]
    pragmas: Mapping[str, Any]
    sequences: Mapping[str, int]
    sorts: Mapping[str, str]

    @classmethod
    def of(cls, view: SourceView) -> "StoredSchema":
        raw = json.loads(view.documents[SCHEMA_DOCUMENT].read())
        return cls(raw["objects"], raw["pragmas"], raw["sequences"], raw["sorts"])

    def of_type(self, *types: str) -> list[dict[str, str]]:
        return [each for each in self.objects if each["type"] in types]


class SqliteRestore:
    """One restore into an open connection (text as bytearray, no transaction yet)."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        view: SourceView,
        layout: Layout,
        request: RestoreRequest,
        progress: Progress,
        *,
        fresh: bool,
    ) -> None:
        """`fresh` says that the target is a new file, which also gets what a shared one must have already."""
        self._connection, self._view, self._layout = connection, view, layout
        self._request, self._progress, self._fresh = request, progress, fresh
        self._schema = StoredSchema.of(view)
        self._creates = fresh or layout.whole
        self._warnings: list[str] = []
        self._lock = RLock()

    def run(self) -> RestoreReport:
        """Apply and commit. Raises TargetError, sqlite3.Error; the target is then as before."""
        connection = self._connection
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("BEGIN IMMEDIATE")
        try:
            report = self._apply()
            self._progress.check()
            kill_point("sqlite.before_commit")
            connection.execute("COMMIT")
            return report
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _apply(self) -> RestoreReport:
        connection, phase = self._connection, self._progress.phase
        phase("compare schema")
        violations = self._violations()
        triggers = self._triggers_drop()
        self._tables_create()
        catalog = catalog_read(connection)
        functions_register(connection, catalog.pragmas["encoding"])
        scope = self._scope(catalog)
        self._adopt(catalog, scope)
        others = self._fingerprint(catalog, scope)
        phase("apply")
        changes, applied = self._tables_apply(catalog, scope)
        self._sequences(catalog)
        self._definitions_create(triggers, catalog)
        phase("check")
        verified = self._verify(catalog)
        neighbours = self._neighbours(catalog, others, applied)
        self._foreign_keys(violations)
        checks = (*verified, self._schema_check())
        return RestoreReport(
            tables=tuple(changes), checks=checks, neighbours=neighbours, warnings=tuple(self._warnings)
        )

    # ------------------------------------------------ schema

    def _names(self) -> set[str]:
        rows = self._connection.execute("SELECT name FROM main.sqlite_schema")
        return {row[0].decode() for row in rows}

    def _triggers_drop(self) -> list[str]:
        """Drop all triggers; return their definitions."""
        rows = self._connection.execute("SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in rows:
            self._connection.execute(f"DROP TRIGGER main.{quote(name.decode())}")
        return [sql.decode() for _, sql in rows]

    def _tables_create(self) -> None:
        wanted = {each.name for each in self._view.tables}
        existing = self._names()
        definitions = self._schema.of_type("table")
        if self._layout.whole:
            known = {each["name"] for each in definitions}
            more = [each.name for each in catalog_read(self._connection).plain if each.name not in known]
            if more:
                self._warnings.append(f"tables made since the backup were left alone: {', '.join(more)}")
        # Virtual tables first: they make their own shadow tables.
        definitions.sort(key=lambda each: self._schema.sorts.get(each["name"]) != "virtual")
        for each in definitions:
            name = each["name"]
            if name in existing or not (self._layout.whole or name in wanted):
                continue
            if not self._creates:
                raise SchemaMismatch(
                    f"table {name} is missing in the target", hint="create it, or restore elsewhere (path=FILE)"
                )
            self._create(each["sql"], name)
            existing = self._names()

    def _create(self, sql: str, name: str) -> None:
        try:
            self._connection.execute(sql)
        except sqlite3.OperationalError as error:
            raise SchemaMismatch(f"{name} cannot be created in the target: {error}") from error

    def _definitions_create(self, triggers: list[str], catalog: Catalog) -> None:
        """Indexes and views that are missing, the target's own triggers, and the backup's where missing."""
        existing = self._names()
        if self._creates:
            wanted = {each.name for each in self._view.tables}
            for each in self._schema.of_type("index", "view"):
                if each["name"] in existing or not (self._layout.whole or each["table"] in wanted):
                    continue
                self._create(each["sql"], each["name"])
        for sql in triggers:
            self._connection.execute(sql)
        if self._layout.whole:
            existing = self._names()
            for each in self._schema.of_type("trigger"):
                if each["name"] not in existing:
                    self._create(each["sql"], each["name"])
        elif triggers and not self._fresh:
            self._warnings.append(
                "triggers did not fire on restored rows: what they maintain (search indexes, counters) may need a rebuild"
            )
        version = catalog.pragmas["user_version"]
        if self._layout.whole and not self._fresh and version != self._schema.pragmas["user_version"]:
            self._warnings.append(
                f"user_version stays {version}; it was {self._schema.pragmas['user_version']} at the backup"
            )

    def _schema_check(self) -> Check:
        names = self._names()
        missing = [each["name"] for each in self._schema.objects if each["name"] not in names] if self._creates else []
        if not self._layout.whole:
            missing = []
        return Check("schema_compatibility", not missing, expected=[], actual=missing)

    # ------------------------------------------------ rows

    def _scope(self, catalog: Catalog) -> Scope:
        if self._layout.whole or self._fresh:
            return Scope()
        return scope_find(self._connection, catalog, self._layout.tenant_column, self._layout.tenant_value)

    def _plan(self, catalog: Catalog, scope: Scope, table: TableView) -> TablePlan:
        found = catalog.tables.get(table.name)
        if found is None:
            raise SchemaMismatch(f"table {table.name} is missing in the target")
        where = scope.where.get(table.name)
        if where is None and not (self._layout.whole or self._fresh):
            raise SchemaMismatch(
                f"table {table.name} is no longer reached from the tenant column",
                hint="its foreign keys or its tenant column changed; restore to another place (path=FILE)",
            )
        return plan_again(
            self._connection, catalog, found,
            mode=table.facts["mode"], key=table.key, columns=[each.name for each in table.columns], where=where,
        )  # fmt: skip

    def _adopt(self, catalog: Catalog, scope: Scope) -> None:
        """Count rows as the tenant's that lost their parents, when they lead to nobody else's row.

        Those with a key of the backup would collide with restored rows; those that refer to a row which
        comes back would be in scope again afterwards without being in the backup.
        """
        wanted = {each.name: each for each in self._view.tables}
        grown = True
        while grown:
            grown = False
            for table in scope.children:
                if table.name not in wanted:
                    continue
                for key, parent in scope.children[table]:
                    if parent.name in wanted and scope.dangling(self._connection, table, key):
                        keys = self._keys_list(wanted[parent.name], key.parent_columns)
                        grown = scope.adopt_referring(self._connection, table, key, keys) or grown
                plan = replace(self._plan(catalog, scope, wanted[table.name]), where=None)
                for handles in strays_of(self._connection, plan, wanted[table.name], scope.unclaimed(table)):
                    scope.adopt(self._connection, table, handles)
                    grown = grown or bool(handles)

    def _keys_list(self, parent: TableView, columns: Sequence[str]) -> str:
        """A temporary table of what the backup's rows hold in those columns."""
        name = "temp.lastro_parent"
        self._connection.execute(f"DROP TABLE IF EXISTS {name}")
        self._connection.execute(f"CREATE TABLE {name} ({', '.join(f'k{at}' for at in range(len(columns)))})")
        names = [each.name.lower() for each in parent.columns]
        if not all(each.lower() in names for each in columns):
            return name
        places = [names.index(each.lower()) for each in columns]
        for rows in parent.rows():
            tuples = tuples_of(rows, skip=parent.key.synthetic)
            insert_all(self._connection, name, (tuple(row[at] for at in places) for row in tuples))
        return name

    def _tables_apply(self, catalog: Catalog, scope: Scope) -> tuple[list[TableChange], int]:
        changes, planned = [], 0
        diffs = []
        for number, table in enumerate(self._view.tables):
            diff = TableDiff(self._connection, self._plan(catalog, scope, table), table, self._progress, number)
            diffs.append(diff)
            diff.find()
        for diff in diffs:
            diff.delete()
        for diff in diffs:
            diff.insert()
            planned += diff.planned
            changes.append(diff.change)
        actual = sum(diff.applied for diff in diffs)
        if actual != planned:
            raise TargetError(f"{actual} row changes were applied instead of {planned}; everything was rolled back")
        for diff in diffs:
            diff.drop()
        return changes, actual

    def _sequences(self, catalog: Catalog) -> None:
        """Sequences never move backwards: an id given out since the backup is not given out again."""
        if not self._layout.whole and not self._fresh:
            return
        known = {each.lower() for each in catalog.tables}
        for name, value in self._schema.sequences.items():
            if name.lower() not in known:
                continue
            found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (name,)).fetchone()
            if found is None:
                self._connection.execute("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", (name, value))
            elif found[0] < value or self._fresh:
                self._connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (value, name))

    # ------------------------------------------------ proof

    def _verify(self, catalog: Catalog) -> tuple[Check, Check]:
        """Select what was restored and compare its digest with the manifest's, before anything is final."""
        scope = self._scope(catalog)
        digests, counts = {}, {}
        for table in self._view.tables:
            plan = self._plan(catalog, scope, table)
            found = table_digest((rows for rows, _ in rows_select(self._connection, self._lock, plan)), table.key)
            digests[table.name], counts[table.name], _ = found
            if found[:2] != (table.sha256, table.row_count):
                raise TargetError(
                    f"table {table.name} is not what the backup holds after the restore; everything was rolled back",
                    hint="the table's column types or constraints changed values; restore to another place (path=FILE)",
                )
        wanted = {table.name: table.sha256 for table in self._view.tables}
        rows = {table.name: table.row_count for table in self._view.tables}
        return (
            Check("checksum_verification", True, expected=wanted, actual=digests),
            Check("data_integrity", True, expected=rows, actual=counts),
        )

    def _outside(self, catalog: Catalog, scope: Scope) -> Iterator[tuple[Table, str]]:
        for table in catalog.plain:
            yield table, scope.outside(table.name)

    def _fingerprint(self, catalog: Catalog, scope: Scope) -> dict[str, str]:
        """Digest of every row outside the scope, per table; empty unless a proof was asked for."""
        if not self._request.prove or self._layout.whole or self._fresh:
            return {}
        digests = {}
        for table, where in self._outside(catalog, scope):
            plan = plan_make(self._connection, catalog, table, whole=True, where=where)
            digest = hashlib.sha256()
            for rows, _ in rows_select(self._connection, self._lock, plan):
                digest.update(b"\n".join(rows) + b"\n")
            digests[table.name] = digest.hexdigest()
        return digests

    def _neighbours(self, catalog: Catalog, others: dict[str, str], applied: int) -> Mapping[str, Any]:
        proof: dict[str, Any] = {"planned": applied, "applied": applied}
        if others:
            after = self._fingerprint(catalog, self._scope(catalog))
            differ = sorted(name for name in others if others[name] != after.get(name))
            if differ:
                raise TargetError(f"rows of others changed in {', '.join(differ)}; everything was rolled back")
            proof["fingerprints"] = after
        return proof

    def _violations(self) -> Counter[tuple[Any, ...]]:
        """Broken references, counted: rows without a rowid all look alike."""
        found: Counter[tuple[Any, ...]] = Counter()
        for table in catalog_read(self._connection).plain:
            if not table.foreign_keys:
                continue
            try:
                rows = self._connection.execute(f"PRAGMA main.foreign_key_check({quote(table.name)})").fetchall()
            except sqlite3.OperationalError:
                continue  # A foreign key that fits no parent cannot be checked, and is never enforced either.
            found.update(tuple(bytes(v) if isinstance(v, bytearray) else v for v in row) for row in rows)
        return found

    def _foreign_keys(self, before: Counter[tuple[Any, ...]]) -> None:
        """New violations refuse a restore into shared tables; a whole database is kept as it was."""
        new = self._violations() - before
        if not new:
            return
        tables = sorted({row[0].decode() for row in new})
        message = f"{new.total()} restored rows refer to rows that do not exist, in {', '.join(tables)}"
        if self._layout.whole or self._fresh:
            self._warnings.append(message)
            return
        raise TargetError(
            f"{message}; everything was rolled back",
            hint="bring back the shared rows they refer to, then restore again",
        )
