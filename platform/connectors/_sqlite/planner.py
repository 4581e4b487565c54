"""What a restore would do to a database, decided without changing it: previews and restores ask the same code.

Only temporary tables are written. A table that the target lacks counts as empty. So a preview computes inside a read
transaction exactly what a restore computes again inside its BEGIN IMMEDIATE.
"""

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from connectors._sqlite import judge
from connectors._sqlite.catalog import Catalog, Table, catalog_read
from connectors._sqlite.changes import TableChanges, Verdict
from connectors._sqlite.connect import CACHE_KIB
from connectors._sqlite.drift import drift_of, values_check
from connectors._sqlite.matching import Match, match
from connectors._sqlite.plan import functions_register
from connectors._sqlite.read import Layout
from connectors._sqlite.references import References, relations_of
from connectors._sqlite.samples import samples_of
from connectors._sqlite.scope import Scope
from connectors._sqlite.scoping import adopt, scope_of, where_of
from connectors._sqlite.stored import StoredSchema
from connectors._sqlite.windows import compare, windows
from engine.errors import NameUnknown, SchemaMismatch, TargetError, UsageError
from engine.plans import ChangeDigest, Dependency, Drift, Preview
from engine.ports import RestoreRequest, SourceView, TableView
from engine.progress import Progress


@dataclass
class Plan:
    """What was decided; its rows lie in temporary tables of the connection."""

    connection: sqlite3.Connection
    stored: StoredSchema
    catalog: Catalog
    scope: Scope
    missing: dict[str, Table]
    """Tables of the backup that the target does not have."""
    matches: dict[str, Match] = field(default_factory=dict)
    changes: list[TableChanges] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    dependencies: list[Dependency] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def drop(self) -> None:
        for each in self.changes:
            each.drop()


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans one restore into an open connection (text as bytearray) that is inside a transaction."""

    connection: sqlite3.Connection
    view: SourceView
    layout: Layout
    request: RestoreRequest
    progress: Progress

    def plan(self) -> Plan:
        """Decide. Raises SchemaMismatch, TargetError and NameUnknown for what a restore would refuse."""
        self.progress.phase("compare schema")
        self.connection.execute(f"PRAGMA temp.cache_size = -{CACHE_KIB}")
        plan = self._schema()
        bases = self._bases(plan)
        functions_register(self.connection, plan.catalog.pragmas["encoding"])
        plan.scope = scope_of(self.connection, plan.catalog, self.layout)
        views = {each.name: each for each in self.view.tables if each.name not in plan.missing}
        adopt(self.connection, plan.catalog, plan.scope, views, self.progress.check)
        self.progress.phase("compare")
        digest = ChangeDigest()
        for number, view in enumerate(self.view.tables):
            base = bases.get(view.name)
            found = self._match(plan, view, base)
            plan.matches[view.name] = found
            plan.changes.append(self._compare(plan, found, base, number, digest))
        self.progress.phase("references")
        moved = self._references(plan)
        for changes in plan.changes:
            values_check(changes)
        if moved:  # The digest taken on the way counts rows that are not done, or lacks some that are.
            digest = ChangeDigest()
            for changes in plan.changes:
                changes.digest(digest)
        plan.digest = digest.hexdigest()
        return plan

    # ------------------------------------------------ schema

    def _schema(self) -> Plan:
        stored, catalog = StoredSchema.of(self.view), catalog_read(self.connection)
        then = stored.catalog()
        missing: dict[str, Table] = {}
        taken = {each["name"].lower(): each["type"] for each in catalog.objects}
        for view in self.view.tables:
            if view.name in catalog.tables:
                continue
            if not self.layout.whole:
                raise SchemaMismatch(
                    f"table {view.name} is missing in the target", hint="create it, or restore elsewhere (path=FILE)"
                )
            if view.name.lower() in taken or view.name not in then.tables:
                raise SchemaMismatch(
                    f"table {view.name} cannot be made in the target", hint="restore to another place (path=FILE)"
                )
            missing[view.name] = then.tables[view.name]
        plan = Plan(self.connection, stored, catalog, Scope(), missing)
        names = [each.name for each in self.view.tables]
        plan.drift = drift_of(then, catalog, names, missing, whole=self.layout.whole)
        more = [each.where for each in plan.drift if each.now == "table"]
        if more:
            plan.warnings.append(f"tables made since the backup were left alone: {', '.join(more)}")
        return plan

    def _bases(self, plan: Plan) -> dict[str, TableView]:
        base = self.request.base
        if base is None or self.request.mode != "merge":
            return {}
        found = {each.name: each for each in base.tables}
        lost = sorted(set(found) & set(plan.missing))
        if lost:
            plan.warnings.append(f"merged without the base, because they are gone from the target: {', '.join(lost)}")
        known: dict[str, TableView] = {}
        for view in self.view.tables:
            other = found.get(view.name)
            if other is None or view.name in plan.missing:
                continue
            if {each.name for each in other.columns} != {each.name for each in view.columns}:
                plan.warnings.append(f"table {view.name} had other columns in the base, and is merged without it")
                continue
            known[view.name] = other
        return known

    # ------------------------------------------------ rows

    def _erased(self) -> frozenset[str]:
        """Tables from which the erasure ledger withholds rows."""
        return frozenset(each.name for each in self.view.tables if not each.sha256)

    def _selected(self, view: TableView) -> bool:
        return self.request.mode != "selective" or view.module in self.request.modules

    def _match(self, plan: Plan, view: TableView, base: TableView | None) -> Match:
        exists = view.name not in plan.missing
        return match(
            self.connection, plan.catalog,
            plan.catalog.tables[view.name] if exists else plan.missing[view.name],
            view,
            where=where_of(plan.scope, self.layout, view.name),
            by_identity=self.request.mode != "full" or bool(self._erased()),
            exists=exists,
            base=base,
        )  # fmt: skip

    def _judge(self, plan: Plan, found: Match, base: TableView | None) -> judge.Judge:
        view = found.view
        if self.request.mode == "merge" and found.table.sort == "shadow":
            plan.warnings.append(f"{view.name} belongs to a search index, which cannot be merged: rebuild the index")
            return judge.unselected
        if self.request.mode != "merge":
            return judge.full if self._selected(view) else judge.unselected
        policy = self.request.policies.get(view.module, "only_missing")
        clock = None
        if policy == "newest_wins":
            clock = self.request.clocks.get(view.name) or judge.clock_column(found.table, found.columns)
            if clock is None:
                plan.warnings.append(
                    f"table {view.name} has no clock column (--clock names one): where both sides differ its rows stay"
                )
            elif clock.lower() not in {each.lower() for each in found.columns}:
                raise NameUnknown(f"table {view.name} has no column {clock} to compare by", hint="name another clock")
            elif view.name not in plan.missing and not judge.is_clock(self.connection, found.table, clock):
                raise UsageError(
                    f"column {clock} of table {view.name} holds neither times nor numbers", hint="name another clock"
                )
            else:
                plan.facts.setdefault("clocks", {})[view.name] = clock
        fields = judge.Fields.of(
            found.table, found.columns, keys=len(found.keys), synthetic=found.plan.key.synthetic, clock=clock,
            ignored=self.layout.tenant_column,
        )  # fmt: skip
        return judge.merge(fields, policy, based=base is not None)

    def _compare(
        self, plan: Plan, found: Match, base: TableView | None, number: int, digest: ChangeDigest
    ) -> TableChanges:
        view, exists, key = found.view, found.view.name not in plan.missing, found.plan.key
        decide = self._judge(plan, found, base)
        changes = TableChanges(
            self.connection, number, view.name, view.module, found.table, found.columns, found.extras, key.synthetic,
            found.handled, exists=exists, selected=self._selected(view), keys=found.keys or found.table.primary,
        )  # fmt: skip
        sides = found.sides(self.connection, number, exists=exists, base=base, check=self.progress.check)
        digest.section(changes.name, changes.columns)
        for window in windows(sides):
            differing, equal = compare(key, window)
            changes.unchanged += equal
            verdicts: list[Verdict] = [*map(decide, differing)]
            changes.store(differing, verdicts)
            digest.lines(changes.lines_of(differing, verdicts))
            self.progress.advance(bytes=sum(map(len, window[0][0])), items=len(window[0][0]))
        return changes

    # ------------------------------------------------ references

    def _references(self, plan: Plan) -> bool:
        """Whether any decision about a row was changed."""
        by_name = {each.name: each for each in plan.changes}
        selection = frozenset(self.request.modules) if self.request.mode == "selective" else None
        references = References(
            self.connection, by_name, relations_of(plan.catalog, by_name, plan.missing), self.progress.check, selection
        )
        if self.request.mode != "full":
            references.settle()
        else:
            if erased := self._erased():
                references.withhold(erased)
            self._refuse(plan, references)
        plan.dependencies = references.dependencies
        return references.moved

    def _refuse(self, plan: Plan, references: References) -> None:
        """A full restore does all or nothing: what stands in its way refuses it."""
        for changes in plan.changes:
            for select, shown in references.all_collisions(changes):
                if references.count(select):
                    raise TargetError(
                        f"table {changes.name}: a restored row collides with one that is not restored: {shown} was taken",
                        hint="a key or a unique value was taken since the backup; merge, or restore to another place (path=FILE)",
                    )
        broken = [*references.broken()]
        if not broken:
            return
        tables = sorted({relation.child.name for relation, _ in broken})
        message = (
            f"{sum(count for _, count in broken)} restored rows refer to rows that do not exist, in {', '.join(tables)}"
        )
        if self.layout.whole:
            plan.warnings.append(message)
            return
        raise TargetError(
            f"{message}; nothing was changed",
            hint="bring back the shared rows they refer to, or merge, then restore again",
        )


def preview_of(plan: Plan, request: RestoreRequest) -> Preview:
    """The plan as it is shown."""
    size = plan.connection.execute("PRAGMA temp.page_size").fetchone()[0]
    pages = plan.connection.execute("PRAGMA temp.page_count").fetchone()[0]
    return Preview(
        digest=plan.digest,
        tables=tuple(each.counts() for each in plan.changes),
        samples={each.name: shown for each in plan.changes if (shown := samples_of(each, request.samples))},
        drift=tuple(plan.drift),
        dependencies=tuple(plan.dependencies),
        warnings=tuple(plan.warnings),
        staged_bytes=size * pages,
        facts=plan.facts,
    )
