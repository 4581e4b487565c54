"""Make live rows what the backup holds: one transaction, by a difference, other rows untouched.

Order of things: stage the backup's rows in temporary tables, lock the tables against changes of schema
(ROW EXCLUSIVE, which every writer holds), compute the difference, apply it, check foreign keys, compare the result
with the backup, move sequences forward, compare the server's count of changed rows with the plan, commit.

Triggers and cascades are kept quiet with `session_replication_role = replica` where the role may set it.
Elsewhere the server's own foreign keys are obeyed: children are deleted first, and when that does not
fit (a child that stays moves to another parent), everything is inserted first and deleted last.
"""

import contextlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from connectors._postgresql import large_objects
from connectors._postgresql.catalogue import Catalogue
from connectors._postgresql.changes import Applier, ConcurrentChange, parents_first
from connectors._postgresql.committing import commit
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, begin, connect, errors, run
from connectors._postgresql.definitions import SEQUENCES
from connectors._postgresql.description import sequence_facts
from connectors._postgresql.difference import Difference, adopted_rows, compute, remaining
from connectors._postgresql.followers import advance_all, advance_past_rows, refresh_views
from connectors._postgresql.links import check_links, check_new_children, with_linked_schemas
from connectors._postgresql.missing import Missing
from connectors._postgresql.neighbours import Ledger, Outside, fingerprint_outside
from connectors._postgresql.part import copy_lines
from connectors._postgresql.reader import catalogue_of, is_utf8, selection_of
from connectors._postgresql.rowtext import RowText
from connectors._postgresql.scope import Selection
from connectors._postgresql.staging import Pair, check_required, load_stage, pair_up
from connectors._postgresql.uniqueness import check_uniqueness
from engine.errors import SchemaMismatch, TargetError, UsageError
from engine.faults import kill_point
from engine.ports import Check, RestoreReport, RestoreRequest, SourceView
from engine.progress import Progress
from engine.table_runs import table_digest

ATTEMPTS_MAX = 5


def connect_target(config: PostgresqlConfig) -> Connection:
    """Open a pinned connection to the target."""
    return connect(
        config.conninfo,
        side="target",
        connect_timeout=config.connect_timeout_seconds,
        statement_timeout=config.statement_timeout_seconds,
        lock_timeout=config.lock_timeout_seconds,
    )


def restore_in_place(
    config: PostgresqlConfig, view: SourceView, request: RestoreRequest, progress: Progress
) -> RestoreReport:
    """Apply the backup to the live tables; wholly or not at all."""
    check_same_source(config, view)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            return _attempt(config, view, request, progress)
        except ConcurrentChange as error:
            if attempt == ATTEMPTS_MAX:
                raise TargetError(
                    f"the tenant's rows keep changing while they are restored ({error})",
                    hint="stop the tenant's application during the restore; nothing was changed",
                ) from None
            progress.warn("postgresql.retry", f"attempt {attempt} met concurrent writes: {error}")
            time.sleep(random.uniform(0.5, 1) * 0.2 * 2**attempt)  # noqa: S311 (spreads retries, hides nothing)
    raise AssertionError("the loop either returns or raises")


def _attempt(config: PostgresqlConfig, view: SourceView, request: RestoreRequest, progress: Progress) -> RestoreReport:
    with errors("target", config.conninfo), contextlib.closing(connect_target(config)) as connection:
        try:
            return _Restore(config, view, request, progress, connection).run()
        except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as error:
            raise ConcurrentChange(error.diag.message_primary or "deadlock") from None


def check_same_source(config: PostgresqlConfig, view: SourceView) -> None:
    """Refuse to write one tenant's rows over another's when the settings changed since the backup."""
    for name in ("layout", "schema", "tenant_column", "tenant_value"):
        was = view.facts.get(name, "")
        now = getattr(config, name)
        if was != now:
            raise UsageError(
                f"the backup was made with {name}={was!r}, the source now says {now!r}",
                hint="restore to another target, or set the source back",
            )
    for name in ("include", "exclude", "ignored_links"):
        # A wider scope than the backup's would delete rows that were never backed up.
        now_listed = sorted(getattr(config, name))
        if name in view.facts and sorted(view.facts[name]) != now_listed:
            raise UsageError(
                f"the backup was made with {name}={sorted(view.facts[name])}, the source now says {now_listed}",
                hint="restore to another target, set the source back, or take a new backup",
            )


@dataclass
class _Restore:
    config: PostgresqlConfig
    view: SourceView
    request: RestoreRequest
    progress: Progress
    connection: Connection
    warnings: list[str] = field(default_factory=list)

    def run(self) -> RestoreReport:
        self.progress.phase("prepare")
        catalogue, selection = self._read_schema()
        begin(self.connection, "REPEATABLE READ" if self.request.prove else "READ COMMITTED")
        if self.request.prove:
            self._lock(selection)
        missing = Missing.among(self.view, selection)
        if missing:
            missing.create(self.connection, self._warn)
            catalogue, selection = self._read_schema()
        pairs = self._pair(selection)
        self.progress.phase("load")
        self.progress.total(
            bytes=sum(pair.view.byte_count for pair in pairs), items=sum(pair.view.row_count for pair in pairs)
        )
        for pair in pairs:
            load_stage(self.connection, pair, self.progress)
        kill_point("pg.restore.loaded")
        self.progress.phase("apply")
        if not self.request.prove:
            self._lock(selection)
        self._check_schema_again(selection)
        linked = with_linked_schemas(self.connection, catalogue, self.config.schema)
        ordered = parents_first(pairs, catalogue.foreign_keys)
        differences = [compute(self.connection, pair, linked.foreign_keys) for pair in ordered]
        adopted = {d.pair.table.oid: adopted_rows(d.pair) for d in differences if d.adopted}
        before = self._fingerprint(catalogue, selection, adopted)
        for difference in differences:
            if difference.change.insert:
                check_required(difference.pair)
        ledger = Ledger(self.connection)
        quiet = self._quiet()
        self._apply(differences, ledger, quiet=quiet)
        self._restore_large_objects()
        missing.complete(self.connection, self._warn)
        links = self._check_constraints(linked if quiet else catalogue, differences, quiet=quiet)
        self.progress.phase("check")
        checks = [self._compare(pairs), self._schema_check(pairs), self._integrity_check(links)]
        self._advance_sequences(pairs)
        neighbours: dict[str, Any] = {"tables": ledger.settle(catalogue), "triggers_silent": quiet}
        neighbours["fingerprints"] = self._prove(before, self._fingerprint(catalogue, selection, adopted))
        self._refresh(differences)
        self.progress.check()
        kill_point("pg.restore.applied")
        commit(self.connection, lambda: connect_target(self.config))
        kill_point("pg.restore.committed")
        changes = {difference.change.name: difference.change for difference in differences}
        return RestoreReport(
            tables=tuple(changes[name] for name in sorted(changes)),
            checks=tuple(checks),
            neighbours=neighbours,
            warnings=tuple(self.warnings),
        )

    # -------------------------------------------------------- schema

    def _read_schema(self) -> tuple[Catalogue, Selection]:
        catalogue = catalogue_of(self.connection, self.config)
        return catalogue, selection_of(catalogue, self.config)

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.progress.warn("postgresql.definitions", message)

    def _pair(self, selection: Selection) -> list[Pair]:
        scopes = {(scope.table.schema, scope.table.name): scope for scope in selection.scopes}
        pairs, missing = [], []
        for number, view in enumerate(self.view.tables):
            scope = scopes.pop((view.facts["schema"], view.facts["table"]), None)
            if scope is not None:
                pairs.append(pair_up(view, scope, number))
            elif view.name != large_objects.NAME:
                missing.append(view.name)
        if missing:
            raise SchemaMismatch(
                f"the target has no {', '.join(missing[:5])} that belongs to the source",
                hint="create the table again, or restore into another schema or database",
            )
        for scope in scopes.values():
            self.warnings.append(f"{scope.table.display} is not in the backup and stays as it is")
        for pair in pairs:
            if pair.removed:
                self.warnings.append(f"{pair.table.display} no longer has {', '.join(pair.removed)}: not restored")
            if pair.added:
                self.warnings.append(f"{pair.table.display} now has {', '.join(pair.added)}: kept, or its default")
            for name, was, now in pair.changed:
                self.warnings.append(f"{pair.table.display} now has {name} as {now}, not {was}: values are converted")
        return pairs

    def _lock(self, selection: Selection) -> None:
        """Hold off changes of schema with the lock that every writer takes; readers and writers go on."""
        for source in sorted(scope.table.source for scope in selection.scopes):
            run(self.connection, f"LOCK TABLE {source} IN ROW EXCLUSIVE MODE")

    def _check_schema_again(self, before: Selection) -> None:
        _, now = self._read_schema()
        if [(s.table.shape, s.text) for s in now.scopes] != [(s.table.shape, s.text) for s in before.scopes]:
            raise ConcurrentChange("the schema changed")

    # -------------------------------------------------------- writing

    def _quiet(self) -> bool:
        """Silence triggers and cascades where the role may; False where the server's own rules stay on."""
        run(self.connection, "SAVEPOINT lastro_quiet")
        try:
            run(self.connection, "SET LOCAL session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            run(self.connection, "ROLLBACK TO SAVEPOINT lastro_quiet")
            run(self.connection, "SET CONSTRAINTS ALL DEFERRED")
            return False
        return True

    def _apply(self, differences: Sequence[Difference], ledger: Ledger, *, quiet: bool) -> None:
        if quiet:
            self._deferred_uniqueness()
            Applier(self.connection, differences, ledger).apply(deletions_last=False)
            return
        reason: Exception | None = None
        for deletions_last in (False, True):
            with ledger.attempt() as attempt:
                try:
                    Applier(self.connection, differences, ledger).apply(deletions_last=deletions_last)
                except (psycopg.IntegrityError, ConcurrentChange) as error:
                    reason = error
                    attempt.undo()
            if not attempt.undone:
                return
        if isinstance(reason, ConcurrentChange):
            raise reason
        assert isinstance(reason, psycopg.Error), "an attempt is undone for a reason"
        raise TargetError(
            f"the changes cannot be made in an order that the constraints allow ({reason.diag.constraint_name})",
            hint="nothing was changed; restore as a role that may set session_replication_role (superuser, or from 15 on "
            "GRANT SET ON PARAMETER)",
        )

    def _deferred_uniqueness(self) -> None:
        run(self.connection, "SET CONSTRAINTS ALL DEFERRED")

    def _check_constraints(self, catalogue: Catalogue, differences: Sequence[Difference], *, quiet: bool) -> int:
        """Check what the server could not, and let it check now what it would check at the commit; return how many links."""
        if quiet:
            check_uniqueness(self.connection, differences)
        changed = {d.pair.table.oid: d for d in differences if d.any}
        links = check_links(self.connection, catalogue, changed, lock=quiet)
        if quiet and self.request.prove:
            with contextlib.closing(connect_target(self.config)) as other:
                check_new_children(self.connection, other, catalogue, changed)
        # Deferred triggers must have written what they write before anybody counts the rows.
        run(self.connection, "SET CONSTRAINTS ALL IMMEDIATE")
        return links

    def _restore_large_objects(self) -> None:
        if self.config.layout != "database":
            return
        owners = self.view.documents.get(large_objects.DOCUMENT)
        if owners is None and not large_objects.any_exist(self.connection):
            return
        pages = next((table for table in self.view.tables if table.name == large_objects.NAME), None)
        stored = json.loads(owners.read()) if owners is not None else []
        large_objects.restore_large_objects(self.connection, pages, stored, self._warn, self.progress)

    def _advance_sequences(self, pairs: Sequence[Pair]) -> None:
        """Move sequences past the restored keys, and a tenant's own ones to where they stood; never backwards."""
        facts = sequence_facts(self.connection)
        for pair in pairs:
            for sequence in facts.get(pair.table.oid, ()):
                if sequence["column"] in pair.columns:
                    advance_past_rows(self.connection, pair.stage, sequence, at_most=self._drawn(pair, sequence))
        if self.config.layout != "rows" and SEQUENCES in self.view.documents:
            advance_all(self.connection, json.loads(self.view.documents[SEQUENCES].read()))

    def _drawn(self, pair: Pair, sequence: Mapping[str, Any]) -> int | None:
        """The last number that a shared sequence had given at the backup: a tenant's own inventions must not use it up."""
        if self.config.layout != "rows":
            return None
        stood = [s["last_value"] for s in pair.view.facts.get("sequences", ()) if s["column"] == sequence["column"]]
        return max((int(last) for last in stood if last is not None), default=0) if stood else None

    def _refresh(self, differences: Sequence[Difference]) -> None:
        """Materialized views of a tenant's own database or schema show the restored rows."""
        if any(difference.any for difference in differences):
            refresh_views(self.connection, self.view.facts.get("materialized", ()), self._warn)

    # -------------------------------------------------------- checking

    def _compare(self, pairs: Sequence[Pair]) -> Check:
        """The digest of each table read back from the target; row by row where its columns have changed."""
        expected, actual, details = {}, {}, []
        for pair in pairs:
            wanted = getattr(pair.view, "sha256", None)
            if wanted and same_text(pair):
                expected[pair.view.name] = wanted
                actual[pair.view.name] = self._digest(pair)
            else:
                details.append(f"{pair.view.name}: compared row by row, its columns changed since the backup")
                expected[pair.view.name] = actual[pair.view.name] = f"{pair.view.row_count} rows"
            if expected[pair.view.name] != actual[pair.view.name] or not same_text(pair):
                rest = remaining(self.connection, pair)
                if rest:
                    raise ConcurrentChange(f"{pair.table.display}: {rest} rows differ after the restore")
        if expected != actual:
            wrong = sorted(name for name in expected if expected[name] != actual[name])
            raise TargetError(
                f"after the restore {', '.join(wrong)} do not have the backup's digest",
                hint="nothing was changed; verify the backup, and look for triggers that rewrite rows",
            )
        return Check("checksum_verification", True, expected, actual, "; ".join(details))

    def _digest(self, pair: Pair) -> str:
        columns = tuple(pair.table.column(column.name) for column in pair.view.columns)
        text = RowText(pair.table, columns, pair.view.key, is_utf8(self.connection))
        query = text.select(pair.scope, version=False, leading=False)
        return table_digest(copy_lines(self.connection, query), pair.view.key)[0]

    def _schema_check(self, pairs: Sequence[Pair]) -> Check:
        expected = {pair.view.name: [column.name for column in pair.view.columns] for pair in pairs}
        actual = {pair.view.name: [*pair.columns, *pair.added] for pair in pairs}
        drift = [pair for pair in pairs if pair.removed or pair.added]
        detail = "; ".join(
            f"{p.view.name}: removed {', '.join(p.removed) or 'none'}, added {', '.join(p.added) or 'none'}"
            for p in drift
        )
        return Check("schema_compatibility", True, expected, actual, detail)

    def _integrity_check(self, links: int) -> Check:
        return Check("data_integrity", True, 0, 0, f"{links} foreign key checks, no row without its parent")

    def _fingerprint(
        self, catalogue: Catalogue, selection: Selection, adopted: Mapping[int, str]
    ) -> dict[str, Outside]:
        if not self.request.prove:
            return {}
        return fingerprint_outside(self.connection, catalogue, selection.scopes, adopted=adopted)

    def _prove(self, before: Mapping[str, Outside], after: Mapping[str, Outside]) -> dict[str, Any]:
        changed = sorted(name for name in before if before[name] != after.get(name))
        if changed:
            raise TargetError(
                f"rows of others would have changed in {', '.join(changed[:5])}",
                hint="nothing was changed; report this",
            )
        return {name: {"rows": outside.count, "digest": outside.digest} for name, outside in after.items()}


def same_text(pair: Pair) -> bool:
    """Whether the target prints rows with the columns and types of the backup, so that digests can be equal."""
    if pair.removed:
        return False
    types = {column.name: column.type for column in pair.table.columns}
    return all(types.get(column.name) == column.type for column in pair.view.columns)
