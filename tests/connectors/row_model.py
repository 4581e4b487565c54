"""What a restore must do to rows, said once more in plain Python: engine.plans.Policy and ADR 7 without any database.

Worlds are `table -> key -> row`. Nothing here is shared with a connector, so that both can be wrong only independently.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Key = tuple[Any, ...]
World = dict[str, dict[Key, Row]]


@dataclass(frozen=True)
class Model:
    """One table: `references` are (column, parent table) to a parent's one-column key."""

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    uniques: tuple[str, ...] = ()
    references: tuple[tuple[str, str], ...] = ()
    birth: str = ""
    clock: str = ""
    ignored: str = "tenant_id"
    """A column that says nothing about whether two rows are one thing."""

    def strangers(self, one: Row, other: Row) -> bool:
        """Whether two rows of the same key are different things."""
        if self.birth and _differ(one[self.birth], other[self.birth]):
            return True
        if self.birth and None not in (one[self.birth], other[self.birth]):
            return False
        if self.uniques:
            return all(_differ(one[each], other[each]) for each in self.uniques)
        if self.birth:
            return False
        plain = [each for each in self.columns if each not in self.key and each != self.ignored]
        return len(plain) >= 3 and all(one[each] != other[each] for each in plain)

    def backup_is_later(self, live: Row, backup: Row) -> bool:
        """By the clock, which holds ISO 8601 text in one form, or nothing."""
        if not self.clock:
            return False
        now, then = live[self.clock], backup[self.clock]
        return now is not None and then is not None and then > now


def _differ(one: Any, other: Any) -> bool:
    """Known to be different: what is not given says nothing."""
    return one is not None and other is not None and one != other


@dataclass
class Decision:
    """One row that differs."""

    live: Row | None
    backup: Row | None
    act: bool
    why: str = ""
    conflict: bool = False
    stranger: bool = False
    along: bool = False

    @property
    def change(self) -> str:
        if self.live is None:
            return "insert"
        return "delete" if self.backup is None else "update"


@dataclass
class Outcome:
    """The tenant's rows afterwards, and what was decided about each row that differs."""

    decisions: dict[str, dict[Key, Decision]]
    final: World = field(default_factory=dict)
    refused: bool = False

    def counts(self, table: str) -> dict[str, int]:
        """By the names of TableChange."""
        found = dict.fromkeys(("insert", "update", "delete", "kept", "collisions", "withheld", "stays", "conflicts"), 0)
        for each in self.decisions[table].values():
            found[each.change if each.act else {"collision": "collisions"}.get(each.why, each.why)] += 1
            found["conflicts"] += each.conflict
        return found


def judge(
    table: Model, live: Row | None, backup: Row | None, base: Row | None, *, based: bool, policy: str
) -> Decision:
    """A merge's decision about one row by itself."""
    done, kept = Decision(live, backup, act=True), Decision(live, backup, act=False, why="kept")
    conflict_done = Decision(live, backup, act=True, conflict=True)
    conflict_kept = Decision(live, backup, act=False, why="kept", conflict=True)
    if live is not None and backup is not None:
        reused = base is not None and base != live and table.strangers(base, live)
        if table.strangers(live, backup) or reused:
            return Decision(live, backup, act=False, why="collision", stranger=True)
        wins = policy == "take_backup" or (policy == "newest_wins" and table.backup_is_later(live, backup))
        if not based:
            return done if wins else kept
        if base in (live, backup):
            return done if base == live else kept
        return conflict_done if wins else conflict_kept
    if not based:
        return done if live is None else kept
    if live is None:
        assert backup is not None, "equal rows are not judged"
        if base == backup:
            return kept  # The tenant deleted it, the backup's side did nothing.
        return done if base is None or table.strangers(base, backup) else conflict_done
    if base is None or (base != live and table.strangers(base, live)):
        return kept  # The tenant made it.
    if base == live:
        return done  # The backup's side deleted it, the tenant did nothing.
    return conflict_done if policy == "take_backup" else conflict_kept


class Merger:
    """The whole change set, and the fixed point of what references and unique values allow."""

    def __init__(
        self,
        tables: Sequence[Model],
        *,
        live: World,
        backup: World,
        others: World,
        base: World | None = None,
        mode: str = "full",
        modules: Sequence[str] = (),
        policies: Mapping[str, str] | None = None,
    ) -> None:
        self.tables = {each.name: each for each in tables}
        self.live, self.backup, self.others, self.base = live, backup, others, base
        self.mode, self.modules, self.policies = mode, modules, policies or {}
        self.decisions = {name: dict(self._decide(table)) for name, table in self.tables.items()}

    def _decide(self, table: Model) -> Iterator[tuple[Key, Decision]]:
        live, backup = self.live[table.name], self.backup[table.name]
        base = self.base[table.name] if self.base is not None else {}
        for key in sorted({*live, *backup}, key=repr):
            before, after = live.get(key), backup.get(key)
            if before == after:
                continue
            if self.mode == "merge":
                policy = self.policies.get(table.name, "only_missing")
                yield key, judge(table, before, after, base.get(key), based=self.base is not None, policy=policy)
            elif self.mode == "full" or table.name in self.modules:
                yield key, Decision(before, after, act=True)
            else:
                yield key, Decision(before, after, act=False, why="kept")

    # ------------------------------------------------ the final state

    def staying(self, name: str) -> Iterator[Row]:
        """Rows of anybody that are neither deleted nor replaced."""
        yield from self.others[name].values()
        for key, row in self.live[name].items():
            found = self.decisions[name].get(key)
            if found is None or not found.act:
                yield row

    def added(self, name: str) -> Iterator[Row]:
        """Rows that the change set puts there."""
        for each in self.decisions[name].values():
            if each.act and each.backup is not None:
                yield each.backup

    def final_keys(self, name: str) -> set[Any]:
        """Keys that are there at the end, anybody's."""
        key = self.tables[name].key[0]
        return {row[key] for row in (*self.staying(name), *self.added(name))}

    # ------------------------------------------------ what cannot be done

    def colliding(self) -> list[Decision]:
        """Changes whose key or unique value belongs to a row that stays."""
        found: list[Decision] = []
        for name, table in self.tables.items():
            stay = [*self.staying(name)]
            for column in (table.key[0], *table.uniques):
                taken = {row[column] for row in stay} - {None}
                found += [
                    each
                    for each in self.decisions[name].values()
                    if each.act and each.backup is not None and each.backup[column] in taken
                ]
        return found

    def needed(self) -> list[Decision]:
        """Changes that take away what a row refers to at the end."""
        found = []
        for name in self.tables:
            key, final = self.tables[name].key[0], self.final_keys(name)
            wanted = set()
            for child in self.tables.values():
                for column, parent in child.references:
                    if parent == name:
                        wanted |= {row[column] for row in (*self.staying(child.name), *self.added(child.name))}
            found += [
                each
                for each in self.decisions[name].values()
                if each.act and each.live is not None and each.live[key] in wanted and each.live[key] not in final
            ]
        return found

    def orphaned(self) -> list[Decision]:
        """Changes that would refer to nothing, or to another thing than the backup's row did."""
        found = []
        for name, table in self.tables.items():
            found += [
                each
                for each in self.decisions[name].values()
                if each.act and each.backup is not None and any(self._broken(each, *link) for link in table.references)
            ]
        return found

    def _broken(self, change: Decision, column: str, parent: str) -> bool:
        assert change.backup is not None, "the caller asks for rows that are written"
        value, key = change.backup[column], self.tables[parent].key[0]
        if value is None:
            return False
        for each in self.decisions[parent].values():
            left_out = not each.act and each.backup is not None and (each.live is None or each.stranger)
            if left_out and each.backup is not None and each.backup[key] == value:
                return True
        if value in self.final_keys(parent):
            return False
        before = {row[key] for row in (*self.others[parent].values(), *self.live[parent].values())}
        return not (change.live is not None and change.live[column] == value and value not in before)

    def bring_along(self) -> None:
        """What a selection's rows refer to and what is gone comes back with them."""
        for changes in self.decisions.values():
            for each in changes.values():
                if each.along:
                    each.act, each.along, each.why = False, False, "kept"
        grown = True
        while grown:
            grown = False
            for name, table in self.tables.items():
                for column, parent in table.references:
                    if parent not in self.modules:
                        missing = {row[column] for row in self.added(name)} - self.final_keys(parent)
                        for each in self._lost(parent, missing):
                            each.act, each.along, each.why, grown = True, True, "", True

    def _lost(self, name: str, keys: set[Any]) -> list[Decision]:
        """Rows of the backup with those keys that the tenant lacks and that are not done yet."""
        column = self.tables[name].key[0]
        return [
            each
            for each in self.decisions[name].values()
            if each.live is None and each.why == "kept" and each.backup is not None and each.backup[column] in keys
        ]

    def run(self) -> Outcome:
        """Decide everything."""
        if self.mode == "full":
            broken = self.colliding() or self.needed() or self.orphaned()
            return Outcome(self.decisions, self._final(), refused=bool(broken))
        while True:
            if self.mode == "selective":
                self.bring_along()
            if not (self._exclude("collision") or self._exclude("stays") or self._exclude("withheld")):
                break
        return Outcome(self.decisions, self._final())

    def _exclude(self, why: str) -> bool:
        find = {"collision": self.colliding, "stays": self.needed, "withheld": self.orphaned}[why]
        any_at_all = False
        while found := find():
            any_at_all = True
            for each in found:
                each.act, each.why, each.along = False, why, False
        return any_at_all

    def _final(self) -> World:
        final: World = {}
        for name, rows in self.live.items():
            changes = self.decisions[name]
            final[name] = {key: row for key, row in rows.items() if key not in changes or not changes[key].act}
            for key, each in changes.items():
                if each.act and each.backup is not None:
                    final[name][key] = each.backup
        return final
