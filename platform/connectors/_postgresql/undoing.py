"""Put back what a restore changed, from its change image, limited to the rows that it touched.

The rows `before` are staged like a backup's, the rows `after` beside them. Live rows of touched keys are compared
with both: where they are still `after`, `before` is put back; where they are not, somebody changed them since (`side` is
'x', a conflict), and nothing is done unless a preview of exactly that was approved. Rows without a key are found by their
content: those of `after` that are no longer there count as conflicts, too.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors._postgresql.catalogue import key_kind
from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.colliding import read_uniques
from connectors._postgresql.connection import value
from connectors._postgresql.dependencies import References
from connectors._postgresql.difference import Difference, Extra, compute, count
from connectors._postgresql.imaging import SOURCE_SETTINGS
from connectors._postgresql.large_comparing import LargeChange
from connectors._postgresql.large_comparing import decide as decide_large
from connectors._postgresql.large_imaging import SECTIONS, LargeStage
from connectors._postgresql.links import with_linked_schemas
from connectors._postgresql.planning import Planned, Work, digest_and_compare
from connectors._postgresql.quoting import ident, idents
from connectors._postgresql.rights import require_rights
from connectors._postgresql.scope import Scope, Selection
from connectors._postgresql.staging import Pair, load_stage, pair_up
from engine.errors import SchemaMismatch, StalePlan, TargetError, UsageError
from engine.ports import Column, ImageView, KeySpec

AFTER_NUMBERS = 200_000
"""Where the numbers of the staging tables for rows `after` begin."""


@dataclass
class ImageTable:
    """engine.ports.TableView over a section of a change image; its lines can be read once."""

    name: str
    module: str
    columns: tuple[Column, ...]
    key: KeySpec
    facts: Mapping[str, Any]
    lines: Iterator[list[bytes]] = field(default_factory=lambda: iter(()))
    row_count: int = 0
    byte_count: int = 0
    sha256: str = ""

    def rows(self) -> Iterator[list[bytes]]:
        """The section's lines."""
        yield from self.lines

    def empty(self) -> "ImageTable":
        """The same table without rows."""
        return dataclasses.replace(self, lines=iter(()))


@dataclass(frozen=True, slots=True)
class _Both:
    """The staged sections of one table; `after` carries another number."""

    before: Pair
    after: Pair


class UndoPlanning:
    """Plans one undo. `plan` once; raises StalePlan when rows changed since and that was not approved."""

    def __init__(self, work: Work, image: ImageView) -> None:
        self._work, self._image = work, image
        self._connection = work.connection
        self._large = LargeStage(work.connection)

    def plan(self) -> Planned:
        """Stage, compare, decide, digest."""
        work = self._work
        work.progress.phase("prepare")
        catalogue, selection = work.read_schema()
        work.begin()
        if not work.holds or work.request.prove:
            work.lock(selection)
        work.progress.phase("load")
        tables = self._stage(selection)
        work.progress.phase("compare")
        if work.holds and not work.request.prove:
            work.lock(selection)
        _, now = work.read_schema()
        if [(s.table.shape, s.text) for s in now.scopes] != [(s.table.shape, s.text) for s in selection.scopes]:
            raise ConcurrentChange("the schema changed")
        linked = with_linked_schemas(self._connection, catalogue, work.config.schema)
        planned = Planned(catalogue, linked, selection, [], [], whole=False, undo=True)
        self._difference(planned, tables)
        planned.large = self._large_objects()
        stale = planned.dependencies or any(d.change.conflicts or d.left for d in planned.differences)
        since = planned.large.since if planned.large is not None else ()
        if (stale or since) and work.holds and not work.request.digest:
            what = [*(["rows"] if stale else []), *([f"large objects ({', '.join(since)})"] if since else [])]
            raise StalePlan(
                f"{' and '.join(what)} that the restore wrote have changed since",
                hint="nothing was changed; look at a preview of the undo and approve it",
            )
        digest_and_compare(work, planned)
        return planned

    def _large_objects(self) -> LargeChange | None:
        if not self._large.finish():
            return None
        return decide_large(self._connection, hold=self._work.holds, undo=True)

    # -------------------------------------------------------- staging

    def _stage(self, selection: Selection) -> list[_Both]:
        scopes = {(scope.table.schema, scope.table.name): scope for scope in selection.scopes}
        numbers: dict[tuple[str, str], int] = {}
        views: dict[tuple[str, str], ImageTable] = {}
        staged: dict[tuple[str, str, str], Pair] = {}
        for header, lines in self._image.sections():
            self._check_source(header)
            if header["rows"] in SECTIONS:
                self._large.take(header, lines)
                continue
            name = (str(header["schema"]), str(header["table"]))
            view = self._view(header, lines)
            if name not in scopes:
                raise SchemaMismatch(
                    f"the target has no {view.name} that belongs to the source",
                    hint="restore the safety backup into another schema or database",
                )
            if name not in views:
                require_rights(self._connection, [scopes[name]])
                views[name], numbers[name] = view, len(numbers)
            rows_of = str(header["rows"])
            staged[*name, rows_of] = self._load(view, scopes[name], numbers[name], rows_of)
        for name, view in views.items():
            for rows_of in ("before", "after"):
                if (*name, rows_of) not in staged:
                    staged[*name, rows_of] = self._load(view.empty(), scopes[name], numbers[name], rows_of)
        return [_limited(_Both(staged[*name, "before"], staged[*name, "after"])) for name in views]

    def _check_source(self, header: Mapping[str, Any]) -> None:
        for setting in SOURCE_SETTINGS:
            was, now = header["source"][setting], getattr(self._work.config, setting)
            if was != now:
                raise UsageError(
                    f"the change image was made with {setting}={was!r}, the source now says {now!r}",
                    hint="set the source back, or restore the safety backup to another target",
                )

    def _view(self, header: Mapping[str, Any], lines: Iterator[list[bytes]]) -> ImageTable:
        columns = tuple(Column(n, t) for n, t in zip(header["columns"], header["types"], strict=True))
        facts = {"schema": header["schema"], "table": header["table"], "key": list(header["key"])}
        return ImageTable(str(header["name"]), str(header["module"]), columns, KeySpec(()), facts, lines)

    def _load(self, view: ImageTable, scope: Scope, number: int, rows_of: str) -> Pair:
        pair = pair_up(view, scope, number if rows_of == "before" else number + AFTER_NUMBERS)
        wanted = set(view.facts["key"])
        if pair.removed:
            raise SchemaMismatch(
                f"{view.name} no longer has {', '.join(pair.removed)}: what was there cannot be put back",
                hint="restore the safety backup into another schema or database",
            )
        if not wanted:
            pair = dataclasses.replace(pair, key=None)
        elif pair.key is None or set(pair.key.columns) != wanted:
            raise SchemaMismatch(
                f"{view.name} no longer has the key ({', '.join(view.facts['key'])})",
                hint="restore the safety backup into another schema or database",
            )
        else:
            kinds = tuple(key_kind(pair.table.column(name)) for name in pair.key.columns)
            view.key = KeySpec(kinds)
        load_stage(self._connection, pair, self._work.progress)
        return pair

    # -------------------------------------------------------- deciding

    def _difference(self, planned: Planned, tables: list[_Both]) -> None:
        links = planned.linked.foreign_keys
        for both in tables:
            compute(self._connection, both.before, links, extra=_since(both))
            self._refuse_strangers(both.before)
        uniques = read_uniques(self._connection, [both.before.table.oid for both in tables])
        references = References(
            connection=self._connection,
            links=links,
            tables=planned.linked.tables,
            pairs={both.before.table.oid: both.before for both in tables},
            bring=lambda _: None,
            modules={},
            uniques=uniques,
        )
        planned.dependencies = references.run()
        for both in tables:
            pair = both.before
            difference = count(self._connection, pair, links, adopted=0, whole=False, sided=True)
            planned.differences.append(self._with_lost(difference, both.after))

    def _with_lost(self, difference: Difference, after: Pair) -> Difference:
        """Count rows without a key that the restore wrote and that are no longer there."""
        if after.key is not None:
            return difference
        there = value(
            self._connection,
            f"SELECT (SELECT count(*) FROM {difference.pair.diff} WHERE change = 'D')"
            f" + (SELECT count(*) FROM {difference.pair.left} WHERE change = 'D')",
        )
        lost = value(self._connection, f"SELECT count(*) FROM {after.stage}") - there
        change = dataclasses.replace(difference.change, conflicts=difference.change.conflicts + lost)
        return dataclasses.replace(difference, change=change)

    def _refuse_strangers(self, pair: Pair) -> None:
        """A key that was given to somebody else since is nobody's to put back."""
        if pair.key is None or not pair.scope.others:
            return
        ctes = f"WITH {', '.join(pair.scope.others_ctes)} " if pair.scope.others_ctes else ""
        found = value(
            self._connection,
            f"{ctes}SELECT count(*) FROM {pair.table.source} AS t WHERE ({pair.scope.others}) IS TRUE"
            f" AND EXISTS (SELECT FROM {pair.diff} AS d WHERE {pair.on_diff('t')})",
        )
        if found:
            raise TargetError(
                f"{found} keys in {pair.table.display} belong to rows outside this source by now",
                hint="nothing was changed; restore the safety backup into another schema and merge by hand",
            )


def _limited(both: _Both) -> _Both:
    """The pair whose difference is limited to what the restore touched."""
    before, after = both.before, both.after
    if before.key is None:
        touched = f"SELECT {after.mark}, {after.ordinal} FROM {after.stage}"
    else:
        keys = idents(before.key.columns)
        touched = f"SELECT {keys} FROM {before.stage} UNION ALL SELECT {keys} FROM {after.stage}"
    return _Both(dataclasses.replace(before, touched=touched), after)


def _since(both: _Both) -> Extra:
    """Whether a live row is no longer what the restore has made of it."""
    before, after = both.before, both.after
    if before.key is None:
        return Extra(", '' AS side")
    first = ident(before.key.columns[0])
    equal = zip(before.key.columns, before.key.equals, strict=True)
    on = " AND ".join(f"coalesce(t.{ident(n)}, s.{ident(n)}) {operator} a.{ident(n)}" for n, operator in equal)
    live, made = (", ".join(f"{side}.{ident(name)}" for name in before.columns) for side in "ta")
    changed = f"(t.{first} IS NULL) <> (a.{first} IS NULL) OR ROW({live})::record *<> ROW({made})::record"
    return Extra(f", CASE WHEN {changed} THEN 'x' ELSE '' END AS side", f" LEFT JOIN {after.stage} AS a ON {on}")
