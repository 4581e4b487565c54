"""What merges and selections must come to, said once more in Python: states as dictionaries, rules as in docs/adr/0007.

Shares nothing with the connector but the words of its policies.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.plans import Policy


class Parent(NamedTuple):
    code: int | None
    name: int
    at: int | None


class Child(NamedTuple):
    parent: int | None
    v: int
    at: int | None


Row = Parent | Child


@dataclass
class State:
    """One side's rows of a group of tables: parents, their children, and a bag of rows without a key."""

    parents: dict[int, Parent] = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)
    bag: Counter[int] = field(default_factory=Counter)

    def copy(self) -> "State":
        return State(dict(self.parents), dict(self.children), Counter(self.bag))


@dataclass
class Plan:
    """Keys to insert, update, delete, by table; `strangers` are keys that another thing has now."""

    insert: set[int] = field(default_factory=set)
    update: set[int] = field(default_factory=set)
    delete: set[int] = field(default_factory=set)
    strangers: set[int] = field(default_factory=set)


def different_things(one: Row, other: Row) -> bool:
    """Rows of the same key: parents by their other unique value, children when everything differs."""
    if isinstance(one, Parent) and isinstance(other, Parent):
        return None not in (one.code, other.code) and one.code != other.code
    return all(a != b for a, b in zip(one, other, strict=True))


def decide(backup: Mapping[int, Row], live: Mapping[int, Row], base: Mapping[int, Row] | None, policy: Policy) -> Plan:
    """Row by row, without a look at references."""
    plan = Plan()
    for key in backup.keys() | live.keys():
        s, t = backup.get(key), live.get(key)
        b = base.get(key) if base is not None else None
        if s == t:
            continue
        if s is None:
            assert t is not None
            gone = base is not None and b is not None and not (t != b and different_things(t, b))
            if gone and (t == b or policy == "take_backup"):
                plan.delete.add(key)
        elif t is None:
            if not (base is not None and b == s):
                plan.insert.add(key)
        elif different_things(s, t) or (b is not None and different_things(b, t)):
            plan.strangers.add(key)
        elif base is not None and b == t:
            plan.update.add(key)
        elif base is not None and b == s:
            pass
        elif policy == "take_backup" or (
            policy == "newest_wins" and s.at is not None and t.at is not None and s.at > t.at
        ):
            plan.update.add(key)
    return plan


def whole(backup: Mapping[int, Row], live: Mapping[int, Row]) -> Plan:
    """A table that becomes the backup's."""
    both = backup.keys() & live.keys()
    changed = {key for key in both if backup[key] != live[key]}
    return Plan(set(backup.keys() - live.keys()), changed, set(live.keys() - backup.keys()))


def settle(
    parents: Plan,
    children: Plan,
    backup: State,
    live: State,
    *,
    others: State,
    unique: bool,
    along: bool,
) -> None:
    """Take out of the plans what would break a reference or a unique value, until nothing changes."""
    while True:
        before = (
            len(parents.insert),
            len(parents.update),
            len(parents.delete),
            len(children.insert),
            len(children.update),
            len(children.delete),
        )
        for plan, rows, kept in (
            (parents, backup.parents, others.parents),
            (children, backup.children, others.children),
        ):
            plan.insert -= kept.keys()
            plan.strangers |= rows.keys() & kept.keys()
        if along:
            wanted = {backup.children[key].parent for key in children.insert | children.update} - {None}
            parents.insert |= {
                k
                for k in wanted
                if k is not None and k in backup.parents and k not in live.parents and k not in parents.strangers
            }
            parents.insert -= parents.strangers
        if unique or along:
            held = {row.code for key, row in live.parents.items() if key not in parents.update | parents.delete}
            held |= {row.code for row in others.parents.values()}
            for key in sorted(parents.insert | parents.update):
                code = backup.parents[key].code
                if code is not None and code in held:
                    parents.insert.discard(key)
                    parents.update.discard(key)
                    if along:
                        parents.strangers.add(key)
        for key in list(children.insert | children.update):
            parent = backup.children[key].parent
            there = parent is None or parent in parents.insert or parent in others.parents
            there = there or (parent in live.parents and parent not in parents.delete)
            if not there or (parent in parents.strangers and not along):
                children.insert.discard(key)
                children.update.discard(key)
        held_by = {
            row.parent
            for key, row in live.children.items()
            if key not in children.delete and not (key in children.update and backup.children[key].parent != row.parent)
        }
        held_by |= {row.parent for row in others.children.values()}
        parents.delete -= {key for key in parents.delete if key in held_by}
        after = (
            len(parents.insert),
            len(parents.update),
            len(parents.delete),
            len(children.insert),
            len(children.update),
            len(children.delete),
        )
        if after == before:
            return


def bag_after(backup: Counter[int], live: Counter[int], base: Counter[int] | None) -> Counter[int]:
    """Rows without a key: the n-th of equal rows is taken for the same on all sides."""
    out: Counter[int] = Counter()
    for value in backup.keys() | live.keys():
        for n in range(1, max(backup[value], live[value]) + 1):
            s, t = n <= backup[value], n <= live[value]
            b = base is not None and n <= base[value]
            out[value] += int((s and t) or (t and not b) or (s and not b))
    return out


def result(parents: Plan, children: Plan, backup: State, live: State, bag: Counter[int]) -> State:
    """The rows by the end."""
    out = live.copy()
    for key in parents.delete:
        del out.parents[key]
    for key in children.delete:
        del out.children[key]
    out.parents |= {key: backup.parents[key] for key in parents.insert | parents.update}
    out.children |= {key: backup.children[key] for key in children.insert | children.update}
    out.bag = +bag
    return out


def merged(backup: State, live: State, base: State | None, policy: Policy, others: State) -> State:
    """The tenant's rows after a merge."""
    parents = decide(backup.parents, live.parents, base.parents if base else None, policy)
    children = decide(backup.children, live.children, base.children if base else None, policy)
    settle(parents, children, backup, live, others=others, unique=True, along=False)
    bag = bag_after(backup.bag, live.bag, base.bag if base else None)
    return result(parents, children, backup, live, bag)


def selected(backup: State, live: State, tables: frozenset[str], others: State) -> State:
    """The tenant's rows after the tables of a selection were restored."""
    parents = whole(backup.parents, live.parents) if "p" in tables else Plan()
    children = whole(backup.children, live.children) if "c" in tables else Plan()
    settle(parents, children, backup, live, others=others, unique=False, along="p" not in tables)
    return result(parents, children, backup, live, backup.bag if "b" in tables else live.bag)
