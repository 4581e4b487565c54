"""From a backup and live tables to the exact set of changes, the same for a preview and for the restore itself.

Stage the rows, compute the difference, decide by the mode, settle references, keep what will change, digest it all.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors._postgresql import large_objects
from connectors._postgresql.catalogue import Catalogue
from connectors._postgresql.changes import ConcurrentChange, parents_first
from connectors._postgresql.colliding import Unique, read_uniques
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, begin, run, value
from connectors._postgresql.deciding import Merging, clock_of, decide, merge_columns
from connectors._postgresql.dependencies import References
from connectors._postgresql.difference import Difference, adopted_rows, compute, compute_nothing, count
from connectors._postgresql.digesting import keep_before, take_digest
from connectors._postgresql.large_comparing import LargeChange
from connectors._postgresql.large_comparing import decide as decide_large
from connectors._postgresql.links import with_linked_schemas
from connectors._postgresql.missing import Missing
from connectors._postgresql.modules import chosen_views
from connectors._postgresql.reader import catalogue_of, selection_of
from connectors._postgresql.rights import require_rights
from connectors._postgresql.scope import Selection
from connectors._postgresql.silencing import silence
from connectors._postgresql.staging import Pair, check_required, load_stage, pair_up
from connectors._postgresql.straight import everything, goes_straight
from engine.errors import SchemaMismatch, StalePlan, TargetError
from engine.plans import Dependency
from engine.ports import RestoreRequest, SourceView, TableChange, TableView
from engine.progress import Progress

BASE_NUMBERS = 100_000
"""Where the numbers of the base's staging tables begin."""


@dataclass
class Work:
    """One attempt in one transaction. `holds`: it will write, so that tables and rows are locked."""

    config: PostgresqlConfig
    request: RestoreRequest
    progress: Progress
    connection: Connection
    holds: bool
    may_go_straight: bool = False
    """Tables without a row of the source may be loaded without a comparison (see `straight`)."""
    goes_straight: bool = False
    """Some are."""
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Keep a sentence for the report, and say it now."""
        self.warnings.append(message)
        self.progress.warn("postgresql.definitions", message)

    def begin(self) -> None:
        """Begin the transaction; a preview and a proof see one snapshot, taken by the next query but LOCK."""
        begin(self.connection, "REPEATABLE READ" if self.request.prove or not self.holds else "READ COMMITTED")
        silence(self.connection)  # Event triggers would see our temporary tables.

    def read_schema(self) -> tuple[Catalogue, Selection]:
        """The tables as they are now, and which of their rows are the source's."""
        catalogue = catalogue_of(self.connection, self.config)
        return catalogue, selection_of(catalogue, self.config)

    def lock(self, selection: Selection) -> None:
        """Hold off changes of schema: a restore with the lock that every writer takes, a preview with a reader's."""
        mode = "ROW EXCLUSIVE" if self.holds else "ACCESS SHARE"
        for source in sorted(scope.table.source for scope in selection.scopes):
            run(self.connection, f"LOCK TABLE {source} IN {mode} MODE")


@dataclass
class Planned:
    """A change set, decided and digested inside an open transaction."""

    catalogue: Catalogue
    linked: Catalogue
    """With the tables of other schemas that foreign keys lead to."""
    selection: Selection
    differences: list[Difference]
    """In the manifest's order."""
    dependencies: list[Dependency]
    whole: bool
    """Every row of the compared tables is the backup's afterwards, but for what was left."""
    digest: str = ""
    missing: Missing | None = None
    clocks: Mapping[str, str] = field(default_factory=dict)
    undo: bool = False
    large: LargeChange | None = None
    """What becomes of the large objects; None where they stay as they are."""

    @property
    def parents_first(self) -> list[Difference]:
        by_number = {difference.pair.number: difference for difference in self.differences}
        ordered = parents_first([d.pair for d in self.differences], self.linked.foreign_keys)
        return [by_number[pair.number] for pair in ordered]

    @property
    def large_changes(self) -> tuple[TableChange, ...]:
        """What becomes of the large objects, as one more table; nothing where they stay."""
        return (self.large.change,) if self.large is not None else ()

    @property
    def adopted(self) -> dict[int, str]:
        """By table, a condition for rows that were nobody's and are restored; in an undo, that are put back."""
        if self.undo:
            keyed = [d.pair for d in self.differences if d.pair.key is not None]
            return {p.table.oid: f"EXISTS (SELECT FROM {p.diff} AS d WHERE {p.on_diff('t')})" for p in keyed}
        return {d.pair.table.oid: adopted_rows(d.pair) for d in self.differences if d.adopted}


def digest_and_compare(work: Work, planned: Planned) -> None:
    """Lock and keep the rows to be changed, take the digest. Raises StalePlan when another one was approved."""
    for difference in planned.parents_first:
        if difference.change.insert:
            check_required(difference.pair)
        keep_before(work.connection, difference, hold=work.holds)
    planned.digest = take_digest(work.connection, planned.differences, work.progress)
    if planned.large is not None and planned.large.mark:
        planned.digest = hashlib.sha256(f"{planned.digest}:{planned.large.mark}".encode()).hexdigest()
    if work.request.digest and work.holds and planned.digest != work.request.digest:
        raise StalePlan(
            "the rows have changed since the preview", hint="nothing was changed; look at a new preview and approve it"
        )


class Planning:
    """Plans one restore in place of a view. `plan` once; the staging tables live as long as the transaction."""

    def __init__(self, work: Work, view: SourceView) -> None:
        self._work, self._view = work, view
        self._connection, self._request = work.connection, work.request
        self._numbers = {id(table): number for number, table in enumerate(view.tables)}
        self._adopted: dict[int, int] = {}
        self._merging: dict[int, Merging] = {}
        self._uniques: dict[int, list[Unique]] = {}
        self.clocks: dict[str, str] = {}

    def plan(self) -> Planned:
        """Raises SchemaMismatch, UsageError, TargetDenied … before anything; StalePlan at the end."""
        work = self._work
        work.progress.phase("prepare")
        views = chosen_views(self._view, self._request)
        catalogue, selection = work.read_schema()
        require_rights(self._connection, self._scopes_of(selection, views))
        work.begin()
        if not work.holds or self._request.prove:
            work.lock(selection)
        missing = self._missing(views, selection)
        if missing:
            (missing if work.holds else missing.without_partitions()).create(self._connection, work.warn)
            catalogue, selection = work.read_schema()
        pairs = self._straightened(self._pair(selection, views))
        self._stage(pairs)
        work.progress.phase("compare")
        if work.holds and not self._request.prove:
            work.lock(selection)
        self._check_schema_again(selection)
        linked = with_linked_schemas(self._connection, catalogue, work.config.schema)
        planned = Planned(catalogue, linked, selection, [], [], self._request.mode == "full", missing=missing)
        self._difference(planned, pairs)
        planned.clocks = self.clocks
        planned.large = self._large_objects()
        digest_and_compare(work, planned)
        return planned

    # -------------------------------------------------------- which tables

    def _scopes_of(self, selection: Selection, views: Sequence[TableView]) -> list[Any]:
        names = {(view.facts["schema"], view.facts["table"]) for view in views}
        return [scope for scope in selection.scopes if (scope.table.schema, scope.table.name) in names]

    def _missing(self, views: Sequence[TableView], selection: Selection) -> Missing:
        """Tables to be made again: of the chosen ones those that are gone, unless the tenant's side dropped them."""
        missing = Missing.among(self._view, selection)
        base = self._request.base if self._request.mode == "merge" else None
        known = {(t.facts["schema"], t.facts["table"]) for t in base.tables} if base is not None else set()
        chosen = {(view.facts["schema"], view.facts["table"]) for view in views} - known
        return missing.limited_to(chosen)

    def _pair(self, selection: Selection, views: Sequence[TableView]) -> list[Pair]:
        work = self._work
        scopes = {(scope.table.schema, scope.table.name): scope for scope in selection.scopes}
        base = self._request.base if self._request.mode == "merge" else None
        dropped = {(t.facts["schema"], t.facts["table"]) for t in base.tables} if base is not None else set()
        pairs, gone = [], []
        for view in views:
            name = (view.facts["schema"], view.facts["table"])
            scope = scopes.pop(name, None)
            if scope is not None:
                pairs.append(pair_up(view, scope, self._numbers[id(view)]))
            elif name in dropped:
                work.warnings.append(f"{view.name} was dropped since the base and stays away")
            else:
                gone.append(view.name)
        if gone:
            raise SchemaMismatch(
                f"the target has no {', '.join(gone[:5])} that belongs to the source",
                hint="create the table again, or restore into another schema or database",
            )
        if self._request.mode != "selective":
            for scope in scopes.values():
                work.warnings.append(f"{scope.table.display} is not in the backup and stays as it is")
        for pair in pairs:
            self._say_drift(pair)
        return pairs

    def _say_drift(self, pair: Pair) -> None:
        warnings = self._work.warnings
        if pair.removed:
            warnings.append(f"{pair.table.display} no longer has {', '.join(pair.removed)}: not restored")
        if pair.added:
            warnings.append(f"{pair.table.display} now has {', '.join(pair.added)}: kept, or its default")
        for name, was, now in pair.changed:
            warnings.append(f"{pair.table.display} now has {name} as {now}, not {was}: values are converted")

    def _large_objects(self) -> LargeChange | None:
        """Large objects belong to nobody's rows: they become the backup's as a whole, or stay."""
        pages = next((table for table in self._view.tables if table.name == large_objects.NAME), None)
        if self._work.config.layout != "database":
            return None
        if self._request.mode == "merge":
            if pages is not None:
                self._work.warnings.append("large objects are not merged: they stay as they are")
            return None
        if self._request.mode == "selective" and large_objects.MODULE not in self._request.modules:
            return None
        owners = self._view.documents.get(large_objects.DOCUMENT)
        if owners is None and not large_objects.any_exist(self._connection):
            return None
        large_objects.require_reading(self._connection)
        document = owners.read() if owners is not None else b"[]"
        large_objects.stage_backup(self._connection, pages, document, self._work.progress)
        return decide_large(self._connection, hold=self._work.holds, undo=False)

    def _check_schema_again(self, before: Selection) -> None:
        _, now = self._work.read_schema()
        if [(s.table.shape, s.text) for s in now.scopes] != [(s.table.shape, s.text) for s in before.scopes]:
            raise ConcurrentChange("the schema changed")

    # -------------------------------------------------------- staging

    def _straightened(self, pairs: list[Pair]) -> list[Pair]:
        """Mark the pairs that need no staging. Nothing of a backup must be withheld then: that is found by comparing."""
        whole = self._request.mode == "full" and all(pair.view.sha256 for pair in pairs)
        if not (whole and self._work.may_go_straight):
            return pairs
        found = [dataclasses.replace(pair, straight=goes_straight(self._connection, pair)) for pair in pairs]
        self._work.goes_straight = any(pair.straight for pair in found)
        return found

    def _stage(self, pairs: Sequence[Pair]) -> None:
        progress = self._work.progress
        progress.phase("load")
        bases = self._bases(pairs)
        staged = [pair for pair in (*pairs, *bases.values()) if not pair.straight]
        progress.total(bytes=sum(p.view.byte_count for p in staged), items=sum(p.view.row_count for p in staged))
        for pair in staged:
            self._load(pair)
        if self._request.mode == "merge":
            for pair in pairs:
                self._merging[pair.number] = self._how(pair, bases.get(pair.number))

    def _load(self, pair: Pair) -> None:
        load_stage(self._connection, pair, self._work.progress)
        if pair.view.sha256 == "":
            found = value(self._connection, f"SELECT count(*) FROM {pair.stage}")
            if found != pair.view.row_count:
                raise TargetError(
                    f"{pair.view.name} has {found} rows in the backup, not {pair.view.row_count}",
                    hint="nothing was changed; verify the backup",
                )

    def _bases(self, pairs: Sequence[Pair]) -> dict[int, Pair]:
        """The base's tables beside the backup's, by the number of the backup's pair."""
        base = self._request.base
        if base is None or self._request.mode != "merge":
            return {}
        views = {
            (view.facts["schema"], view.facts["table"]): view for view in base.tables if view.name != large_objects.NAME
        }
        found = {}
        for pair in pairs:
            view = views.get((pair.table.schema, pair.table.name))
            if view is None:
                continue
            other = pair_up(view, pair.scope, pair.number + BASE_NUMBERS)
            if pair.key is None and other.key is None and set(pair.columns) <= set(other.columns):
                found[pair.number] = dataclasses.replace(other, columns=pair.columns)
            elif pair.key is not None and set(pair.key.columns) <= set(other.columns) and not view.key.synthetic:
                found[pair.number] = dataclasses.replace(other, key=pair.key)
            else:
                self._work.warnings.append(f"the base's {view.name} has another key: its rows are not compared with it")
        return found

    def _how(self, pair: Pair, base: Pair | None) -> Merging:
        policy = self._request.policies.get(pair.view.module, "only_missing")
        clock = clock_of(pair, self._request.clocks) if policy == "newest_wins" else ""
        if clock:
            self.clocks[pair.view.name] = clock
        elif policy == "newest_wins" and pair.key is not None:
            self._work.warnings.append(
                f"{pair.table.display} has no column that says when a row changed: what exists stays"
            )
        return Merging(policy, clock, self._request.base is not None, base)

    # -------------------------------------------------------- deciding

    def _difference(self, planned: Planned, pairs: list[Pair]) -> None:
        mode = self._request.mode
        if mode != "full":
            oids = [scope.table.oid for scope in planned.selection.scopes]
            self._uniques = read_uniques(self._connection, oids)
        for pair in pairs:
            if not pair.straight:
                self._compute(pair, planned.linked)
        by_oid = {pair.table.oid: pair for pair in pairs}
        withheld = any(pair.view.sha256 == "" for pair in pairs)
        if mode != "full" or withheld:
            references = self._references(planned, by_oid)
            planned.dependencies = references.run()
        compared = {pair.number for pair in pairs}
        for pair in sorted(by_oid.values(), key=lambda pair: pair.number):
            if pair.straight:
                planned.differences.append(everything(pair, planned.linked.foreign_keys))
                continue
            difference = count(
                self._connection,
                pair,
                planned.linked.foreign_keys,
                adopted=self._adopted.get(pair.number, 0),
                whole=pair.number in compared,
                sided=mode == "merge",
            )
            planned.differences.append(difference)

    def _compute(self, pair: Pair, linked: Catalogue) -> None:
        merging = self._merging.get(pair.number)
        extra = None
        if merging is not None:
            constant = [self._work.config.tenant_column] if self._work.config.layout == "rows" else []
            uniques = self._uniques.get(pair.table.oid, ())
            extra = merge_columns(pair, merging, uniques, constant=constant)
        self._adopted[pair.number] = compute(
            self._connection, pair, linked.foreign_keys, extra=extra, strangers_refused=merging is None
        )
        if merging is not None:
            decide(self._connection, pair, merging)

    def _references(self, planned: Planned, by_oid: dict[int, Pair]) -> References:
        unselected: dict[int, TableView] = {}
        if self._request.mode == "selective":
            for view in self._view.tables:
                table = planned.catalogue.find(view.facts["schema"], view.facts["table"])
                if table is not None and table.oid not in by_oid:
                    unselected[table.oid] = view
        # What a selected table of the backup is compared with becomes the backup's wholly: no value can be taken.
        meets = (
            self._uniques
            if self._request.mode == "merge"
            else {o: u for o, u in self._uniques.items() if o in unselected}
        )
        return References(
            connection=self._connection,
            links=planned.linked.foreign_keys,
            tables=planned.linked.tables,
            pairs=by_oid,
            bring=self._bringer(planned, unselected),
            modules={oid: view.module for oid, view in unselected.items()},
            uniques=meets,
        )

    def _bringer(self, planned: Planned, unselected: Mapping[int, TableView]) -> "Callable[[int], Pair | None]":
        scopes = {scope.table.oid: scope for scope in planned.selection.scopes}

        def bring(oid: int) -> Pair | None:
            view, scope = unselected.get(oid), scopes.get(oid)
            if view is None or scope is None:
                return None
            require_rights(self._connection, [scope])
            pair = pair_up(view, scope, self._numbers[id(view)])
            self._load(pair)
            compute_nothing(self._connection, pair, planned.linked.foreign_keys)
            return pair

        return bring
