"""A restore into a database that exists: planned, applied and checked in one transaction that is still open."""

import hashlib
import sqlite3
from collections.abc import Mapping
from threading import RLock
from typing import Any

from connectors._sqlite.applying import (
    Definitions,
    by_tables,
    data_version,
    reading_begin,
    rows_apply,
    rows_check,
    transaction_begin,
    violations,
)
from connectors._sqlite.catalog import catalog_read, quote
from connectors._sqlite.plan import plan_make, rows_select
from connectors._sqlite.planner import Plan, Planner
from connectors._sqlite.prepared import FileIdentity, PreparedSqlite
from connectors._sqlite.read import Layout
from connectors._sqlite.references import relations_of
from connectors._sqlite.scoping import scope_of
from engine.errors import StalePlan, TargetError
from engine.ports import Check, RestoreReport, RestoreRequest, SourceView
from engine.progress import Progress
from engine.table_runs import table_digest


def digest_check(digest: str, request: RestoreRequest) -> None:
    """Raise StalePlan when the approved plan was another one."""
    if request.digest and request.digest != digest:
        raise StalePlan("the rows that would change are not those of the plan", hint="look at a new preview")


def sequences_of(connection: sqlite3.Connection) -> dict[str, int]:
    """What AUTOINCREMENT has given out, by table."""
    if connection.execute("SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence'").fetchone() is None:
        return {}
    rows = connection.execute("SELECT name, seq FROM main.sqlite_sequence").fetchall()
    return {name.decode(): int(value or 0) for name, value in rows}


READINGS_MAX = 2
"""How often a restore compares without the write lock, before it takes the lock first."""


def _others_may_write(connection: sqlite3.Connection) -> bool:
    """Whether a reader leaves writers alone; without a write-ahead log they wait for it just as they wait for the lock."""
    mode = connection.execute("PRAGMA main.journal_mode").fetchone()[0]
    return bytes(mode).decode().lower() == "wal"


class InPlace:
    """One restore into an open connection (text as bytearray, no transaction yet)."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        file: FileIdentity,
        view: SourceView,
        layout: Layout,
        request: RestoreRequest,
        progress: Progress,
    ) -> None:
        self._connection, self._file, self._view, self._layout = connection, file, view, layout
        self._request, self._progress = request, progress
        self._definitions = Definitions(connection)
        self._database = view.facts["layout"] == "database"

    def run(self) -> PreparedSqlite:
        """Do everything but the commit. Raises StalePlan, SchemaMismatch, TargetError; the caller rolls back."""
        connection = self._connection
        plan = self._planned()
        digest_check(plan.digest, self._request)
        if any(each.was == "checks" for each in plan.drift):
            connection.execute("PRAGMA ignore_check_constraints = OFF")
        by_name = {each.name: each for each in plan.changes}
        relations = relations_of(plan.catalog, by_name, plan.missing)
        broken = violations(connection, relations)
        others = self._fingerprint(plan, done=False)
        sequences = sequences_of(connection)
        self._progress.phase("apply")
        self._tables_create(plan)
        self._definitions.silence(each.name for each in plan.changes if each.adds or each.removes)
        silenced = bool(self._definitions.silenced)
        counted = rows_apply(connection, plan.changes, self._progress)
        self._sequences(plan)
        self._objects_create(plan)
        self._definitions.speak()
        self._notes(plan, silenced)
        self._progress.phase("check")
        checks = self._checks(plan)
        neighbours = self._neighbours(plan, others, counted)
        left = violations(connection, relations)
        self._references(plan, broken, left)
        report = RestoreReport(
            tables=tuple(each.counts() for each in plan.changes),
            checks=(*checks, self._schema_check(plan)),
            neighbours=neighbours,
            warnings=tuple(plan.warnings),
            digest=plan.digest,
        )
        self._progress.check()
        pairs = {name: (sequences.get(name), value) for name, value in sequences_of(connection).items()}
        return PreparedSqlite(
            connection,
            self._file,
            self._layout,
            plan.changes,
            report,
            self._definitions.created,
            (),
            pairs,
            by_tables(broken) - by_tables(left),
        )

    def _planned(self) -> Plan:
        """Decide, and hold the write lock from there on; what was decided fits what the lock protects.

        Most of a restore's time goes into comparing. That is done before the lock is taken, so that others can write
        meanwhile, and done anew when somebody did; only then, in the end, under the lock.
        """
        connection = self._connection
        for _ in range(READINGS_MAX if _others_may_write(connection) else 0):
            reading_begin(connection)
            self._file.check()
            plan, version = self._plan(), data_version(connection)
            connection.execute("COMMIT")
            digest_check(plan.digest, self._request)
            transaction_begin(connection)
            if data_version(connection) == version:
                self._file.check()
                return plan
            connection.execute("ROLLBACK")
            plan.drop()
        transaction_begin(connection)
        self._file.check()
        return self._plan()

    def _plan(self) -> Plan:
        return Planner(self._connection, self._view, self._layout, self._request, self._progress).plan()

    # ------------------------------------------------ schema

    def _wanted(self, plan: Plan) -> set[str]:
        """Missing tables that are made: all, or of a selection those that get rows or were chosen."""
        by_name = {each.name: each for each in plan.changes}
        return {name for name in plan.missing if by_name[name].selected or by_name[name].adds}

    def _tables_create(self, plan: Plan) -> None:
        """Virtual tables first: they make their own shadow tables, whose first rows give way to the backup's."""
        wanted = self._wanted(plan)
        definitions = plan.stored.of_type("table")
        if self._database and self._request.mode == "full":
            known = set(plan.catalog.tables)
            wanted |= {each["name"] for each in definitions} - known
        definitions.sort(key=lambda each: plan.stored.sorts.get(each["name"]) != "virtual")
        for each in definitions:
            if each["name"] in wanted and each["name"] not in (before := self._definitions.names()):
                self._definitions.create(each)
                if plan.stored.sorts.get(each["name"]) == "virtual":
                    for name in self._definitions.names() - before:
                        if name in plan.missing:
                            self._connection.execute(f"DELETE FROM main.{quote(name)}")

    def _objects_create(self, plan: Plan) -> None:
        """Indexes, views and triggers that are missing: all of a database, else those of tables made anew."""
        if not self._layout.whole:
            return
        wanted, existing = self._wanted(plan), self._definitions.names()
        all_of_it = self._database and self._request.mode == "full"
        types = ("index", "view", "trigger") if self._database else ("index",)
        silenced = set(self._definitions.silenced)
        for each in plan.stored.of_type(*types):
            if each["name"] not in existing | silenced and (all_of_it or each["table"] in wanted):
                self._definitions.create(each)

    def _notes(self, plan: Plan, silenced: bool) -> None:
        if silenced and not (self._layout.whole and self._request.mode == "full"):
            plan.warnings.append(
                "triggers did not fire on restored rows: what they maintain (search indexes, counters) may need a rebuild"
            )
        version, then = plan.catalog.pragmas["user_version"], plan.stored.pragmas["user_version"]
        if self._database and version != then:
            plan.warnings.append(f"user_version stays {version}; it was {then} at the backup")

    def _schema_check(self, plan: Plan) -> Check:
        names, missing = self._definitions.names(), []
        if self._database and self._request.mode == "full":
            missing = [each["name"] for each in plan.stored.objects if each["name"] not in names]
        return Check("schema_compatibility", not missing, expected=[], actual=missing)

    def _sequences(self, plan: Plan) -> None:
        """Sequences never move backwards: an id given out since the backup is not given out again."""
        if not self._layout.whole:
            return
        now = sequences_of(self._connection)
        chosen = {each.name for each in plan.changes if each.selected}
        for name, value in plan.stored.sequences.items():
            if name not in chosen:
                continue
            if name not in now:
                self._connection.execute("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", (name, value))
            elif now[name] < value:
                self._connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (value, name))

    # ------------------------------------------------ proof

    def _checks(self, plan: Plan) -> tuple[Check, Check]:
        """What was decided is there; of a full restore each table as a whole is what the manifest says."""
        if self._request.mode != "full":
            return rows_check(plan.changes)
        catalog = catalog_read(self._connection)
        scope = scope_of(self._connection, catalog, self._layout)
        digests, counts = {}, {}
        by_name = {each.name: each for each in plan.changes}
        for view in self._view.tables:
            match = plan.matches[view.name]
            if not view.sha256 or match.removed or match.staged or by_name[view.name].leaves:
                continue
            lines = match.lines(self._connection, scope.where.get(view.name))
            digests[view.name], counts[view.name], _ = table_digest(lines, view.key)
            if (digests[view.name], counts[view.name]) != (view.sha256, view.row_count):
                raise TargetError(
                    f"table {view.name} is not what the backup holds after the restore; everything was rolled back",
                    hint="the table's column types or constraints changed values; restore to another place (path=FILE)",
                )
        checksums, integrity = rows_check([each for each in plan.changes if each.name not in digests])
        rows = {each.name: each.row_count for each in self._view.tables if each.name in digests}
        # The digests of the manifest were compared above, so that expected and actual are the same here.
        return (
            Check("checksum_verification", True, {**checksums.expected, **digests}, {**checksums.actual, **digests}),
            Check("data_integrity", True, {**integrity.expected, **rows}, {**integrity.actual, **counts}),
        )

    def _fingerprint(self, plan: Plan, *, done: bool) -> dict[str, str]:
        """Digest of every row that the plan does not touch, per table; empty unless a proof was asked for.

        It is not asked which rows are the tenant's: a row whose parent comes back passes into the scope unchanged.
        """
        if not self._request.prove or self._layout.whole:
            return {}
        by_name = {each.name: each for each in plan.changes}
        digests = {}
        for table in plan.catalog.plain:
            changes = by_name.get(table.name)
            where = None if changes is None else f"NOT {changes.touched(quote(table.name), done=done)}"
            select = plan_make(self._connection, plan.catalog, table, whole=True, where=where)
            digest = hashlib.sha256()
            for rows, _ in rows_select(self._connection, RLock(), select):
                digest.update(b"\n".join(rows) + b"\n")
            digests[table.name] = digest.hexdigest()
        return digests

    def _neighbours(self, plan: Plan, others: dict[str, str], counted: Mapping[str, Any]) -> Mapping[str, Any]:
        proof: dict[str, Any] = {"tables": counted}
        if others:
            after = self._fingerprint(plan, done=True)
            differ = sorted(name for name in others if others[name] != after.get(name))
            if differ:
                raise TargetError(f"rows of others changed in {', '.join(differ)}; everything was rolled back")
            proof["fingerprints"] = after
        return proof

    def _references(self, plan: Plan, before: Any, after: Any) -> None:
        """The plan has looked at references already; this asks SQLite itself."""
        new = after - before
        if not new or (self._layout.whole and self._request.mode == "full"):
            return
        tables = sorted({row[0].decode() for row in new})
        raise TargetError(
            f"{new.total()} restored rows refer to rows that do not exist, in {', '.join(tables)}; everything was rolled back",
            hint="bring back the shared rows they refer to, or merge, then restore again",
        )
