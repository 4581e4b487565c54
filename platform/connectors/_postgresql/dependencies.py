"""References stay whole without asking back: what comes along, what stays, what is withheld (docs/adr/0007).

Works on the diff tables until nothing moves any more. Each round only takes rows out of them, but for those that
come along, which are never put back once they were taken out; so it ends. Foreign keys of single partitions, of
periods, and those that were not validated are not followed here; `links` checks them when everything is written.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from connectors._postgresql.catalogue import ForeignKey, Table
from connectors._postgresql.colliding import Unique, leave_taken
from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.difference import leave, referenced_columns
from connectors._postgresql.quoting import ident
from connectors._postgresql.staging import Pair
from engine.errors import TargetError
from engine.plans import Dependency

Kind = Literal["stays", "withheld"]
ROUNDS_MAX = 10_000
"""More than any chain of rows through several tables that people make."""


@dataclass
class References:
    """Settles references among the pairs' diff tables; `run` once, then read `found`."""

    connection: Connection
    links: Sequence[ForeignKey]
    tables: Mapping[int, Table]
    pairs: dict[int, Pair]
    """By table, those that have a diff table; `bring` adds to it."""
    bring: Callable[[int], Pair | None]
    """Stage a table of the backup that is not part of the selection, for rows that come along; None when it has none."""
    modules: Mapping[int, str]
    """Modules of tables in the backup that are not part of the selection."""
    uniques: Mapping[int, Sequence[Unique]] = field(default_factory=dict)
    """Where restored rows may meet rows of the tenant that stay."""
    _rows: Counter[tuple[Kind, int, int]] = field(default_factory=Counter)
    _changes: dict[int, dict[str, int]] = field(default_factory=dict)

    def run(self) -> list[Dependency]:
        """Move rows until all references hold; say what was moved and why."""
        dirty = set(self.pairs)
        self._leave_taken(dirty)
        for _ in range(ROUNDS_MAX):
            if not dirty:
                return list(self._dependencies())
            # What comes along is complete before anything is withheld for want of it.
            brought = self._each_link(dirty, (self._come_along,))
            if brought:
                dirty |= brought
                continue
            dirty = self._each_link(dirty, (self._stay, self._withhold_from_strangers, self._withhold))
            self._leave_taken(dirty)
            dirty |= self._release() if dirty else set()
        raise TargetError(
            "references between the rows lead too far to be followed",
            hint="nothing was changed; restore in mode full, or into another schema",
        )

    def _each_link(self, dirty: set[int], steps: Sequence[Callable[[ForeignKey], set[int]]]) -> set[int]:
        """Take steps over every key that joins tables in which something changed; a key within one table to its end."""
        moved: set[int] = set()
        for link in self.links:
            partial = link.child_part or link.parent_part or link.period
            if not link.validated or partial or not {link.child, link.parent} & dirty:
                continue
            for step in steps:
                for _ in range(ROUNDS_MAX):
                    changed = step(link)
                    moved |= changed
                    if not changed or link.child != link.parent:
                        break
        return moved

    def _leave_taken(self, tables: set[int]) -> None:
        """A row that keeps its value may hold what another one was to get."""
        for oid in sorted(tables & self.uniques.keys() & self.pairs.keys()):
            leave_taken(self.connection, self.pairs[oid], self.uniques[oid])
            self._changes.pop(oid, None)

    def _release(self) -> set[int]:
        """Let go of rows that came along for others which are withheld by now."""
        released: set[int] = set()
        for oid in sorted(self.modules.keys() & self.pairs.keys()):
            pair = self.pairs[oid]
            wanted = [
                f"NOT EXISTS (SELECT FROM {child.diff} AS x JOIN {child.stage} AS s ON {child.on_stage('s', 'x')}"
                f" JOIN {pair.stage} AS n ON {_on(link, 'n', 's')} WHERE x.change IN ('I', 'U') AND {pair.on_stage('n')})"
                for link in self.links
                if link.parent == oid and link.child in self.pairs and link.child != oid and self._follows(link)
                for child in (self.pairs[link.child],)
            ]
            own = [link for link in self.links if link.parent == link.child == oid]
            if own:
                # Rows that hold one another would never be let go; they stay in, which costs nothing but rows.
                wanted += [
                    f"NOT EXISTS (SELECT FROM {pair.diff} AS x JOIN {pair.stage} AS s ON {pair.on_stage('s', 'x')}"
                    f" JOIN {pair.stage} AS n ON {_on(link, 'n', 's')} WHERE {pair.on_stage('n')})"
                    for link in own
                ]
            condition = " AND ".join(wanted) or "true"
            if run(self.connection, f"DELETE FROM {pair.diff} AS d WHERE {condition}").rowcount:
                self._changes.pop(oid, None)
                released.add(oid)
        return released

    def _has(self, oid: int, *changes: str) -> bool:
        """Whether a table's diff has any such rows; asked often, and most have none."""
        if oid not in self.pairs:
            return False
        if oid not in self._changes:
            found = run(
                self.connection, f"SELECT change, count(*) FROM {self.pairs[oid].diff} GROUP BY change"
            ).fetchall()
            self._changes[oid] = dict(found)
        return any(self._changes[oid].get(change) for change in changes)

    def _note(self, kind: Kind, table: int, other: int, count: int) -> set[int]:
        if not count:
            return set()
        self._rows[kind, table, other] += count
        self._changes.pop(table, None)
        return {table}

    def _dependencies(self) -> Iterator[Dependency]:
        for oid in sorted(self.modules.keys() & self.pairs.keys()):
            pair = self.pairs[oid]
            came = rows(self.connection, f"SELECT origin, count(*) FROM {pair.diff} GROUP BY origin ORDER BY origin")
            for origin, count in came:
                name = self.tables[int(origin)].display
                yield Dependency("along", pair.view.name, name, int(count), self.modules[oid])
        for (kind, table, other), count in sorted(self._rows.items()):
            name, module = self.tables[other].display, self.modules.get(other, "")
            yield Dependency(kind, self.pairs[table].view.name, name, count, module)

    # -------------------------------------------------------- what stays

    def _stay(self, link: ForeignKey) -> set[int]:
        """Rows that would go, but to which a row that stays refers."""
        if not self._has(link.parent, "D", "U"):
            return set()
        pair = self.pairs[link.parent]
        old = {name: f"r{n}" for n, name in enumerate(referenced_columns(pair, self.links))}
        pairs = zip(link.parent_columns, link.equals, link.columns, strict=True)
        refers = " AND ".join(f"d.{old[p]} {equals} c.{ident(c)}" for p, equals, c in pairs)
        goes = self._leaves(link)
        source = self.tables[link.child].source
        held = f"EXISTS (SELECT FROM {source} AS c WHERE {refers}{goes})"
        because = f"'rows of {_quoted(self.tables[link.child].display)} refer to it'"
        replaced = ""
        by_key = pair.key is not None and set(link.parent_columns) <= set(pair.key.columns)
        known = set(link.parent_columns) <= set(pair.columns)
        if not by_key and known:
            again = " AND ".join(
                f"n.{ident(p)} {equals} d.{old[p]}" for p, equals in zip(link.parent_columns, link.equals, strict=True)
            )
            replaced = (
                f" AND NOT EXISTS (SELECT FROM {pair.diff} AS y JOIN {pair.stage} AS n ON {pair.on_stage('n', 'y')}"
                f" WHERE y.change <> 'D' AND {again})"
            )
        moved: set[int] = set()
        if self._has(link.parent, "D"):
            count = leave(self.connection, pair, f"d.change = 'D' AND {held}{replaced}", what="stays", because=because)
            moved |= self._note("stays", link.parent, link.child, count)
        if known and not by_key and self._has(link.parent, "U"):
            values = ", ".join(f"n.{ident(p)}" for p in link.parent_columns)
            was = ", ".join(f"d.{old[p]}" for p in link.parent_columns)
            differs = (
                f"d.change = 'U' AND EXISTS (SELECT FROM {pair.stage} AS n WHERE {pair.on_stage('n')}"
                f" AND ROW({values})::record *<> ROW({was})::record)"
            )
            count = leave(self.connection, pair, f"{differs} AND {held}{replaced}", what="withheld", because=because)
            moved |= self._note("withheld", link.parent, link.child, count)
        return moved

    def _with_chain(self, pair: Pair, condition: str, joins: str) -> tuple[str, str]:
        """The condition for rows `d` and for all that are reached from them, `w`, by joins with others; and the query."""
        assert pair.key is not None, "chains are followed by keys"
        keys = ", ".join(f"d.k{n}" for n in range(len(pair.key.columns)))
        chain = f"w AS (SELECT {keys} FROM {pair.diff} AS d WHERE {condition} UNION SELECT {keys} FROM w {joins})"
        return f"EXISTS (SELECT FROM w WHERE {self._same_keys(pair, 'w', 'd')})", chain

    @staticmethod
    def _same_keys(pair: Pair, one: str, other: str) -> str:
        assert pair.key is not None, "chains are followed by keys"
        return " AND ".join(f"{one}.k{n} {equals} {other}.k{n}" for n, equals in enumerate(pair.key.equals))

    def _leaves(self, link: ForeignKey) -> str:
        """A condition, led by AND, that a live row `c` of the child goes on referring to what it refers to."""
        pair = self.pairs.get(link.child)
        if pair is None or not self._has(link.child, "D", "U"):
            return ""
        if pair.key is None:
            return f" AND NOT EXISTS (SELECT FROM {pair.diff} AS x WHERE x.change = 'D' AND x.place = c.ctid AND x.relation = c.tableoid)"
        if not set(link.columns) <= set(pair.columns) or not self._has(link.child, "U"):
            return f" AND NOT EXISTS (SELECT FROM {pair.diff} AS x WHERE x.change = 'D' AND {pair.on_stage('c', 'x')})"
        new, now = (", ".join(f"{alias}.{ident(name)}" for name in link.columns) for alias in ("n", "c"))
        return (
            f" AND NOT EXISTS (SELECT FROM {pair.diff} AS x LEFT JOIN {pair.stage} AS n ON {pair.on_stage('n', 'x')}"
            f" WHERE {pair.on_stage('c', 'x')} AND (x.change = 'D' OR (x.change = 'U'"
            f" AND ROW({new})::record *<> ROW({now})::record)))"
        )

    # -------------------------------------------------------- what comes along

    def _come_along(self, link: ForeignKey) -> set[int]:
        """Rows of other modules that restored rows refer to and that are gone."""
        if link.parent not in self.modules or not self._follows(link):
            return set()
        child = self.pairs[link.child]
        missing = self._without_parent(link)
        if not value(self.connection, f"SELECT EXISTS (SELECT FROM {child.diff} AS d WHERE {missing})"):
            return set()
        pair = self.pairs.get(link.parent) or self.bring(link.parent)
        if pair is None or not set(link.parent_columns) <= set(pair.columns):
            return set()
        self.pairs[link.parent] = pair
        self._changes.pop(link.parent, None)
        count = run(self.connection, self._bring_rows(link, child, pair)).rowcount
        if count and link.parent in self.uniques:
            count -= leave_taken(self.connection, pair, self.uniques[link.parent])
        return {link.parent} if count > 0 else set()

    def _bring_rows(self, link: ForeignKey, child: Pair, pair: Pair) -> str:
        if pair.key is not None:
            names = [f"k{n}" for n in range(len(pair.key.columns))]
            keys = [f"p.{ident(name)}" for name in pair.key.columns]
            taken = f" AND NOT EXISTS (SELECT FROM {pair.table.source} AS t WHERE {pair.on('t', 'p')})"
        else:
            names, keys, taken = ["k0", "k1"], [f"p.{pair.mark}", f"p.{pair.ordinal}"], ""
        there = " AND ".join(
            f"t.{ident(name)} {equals} p.{ident(name)}"
            for name, equals in zip(link.parent_columns, link.equals, strict=True)
        )
        wanted = (
            f"SELECT FROM {child.diff} AS d JOIN {child.stage} AS s ON {child.on_stage('s')}"
            f" WHERE d.change IN ('I', 'U') AND {_on(link, 'p', 's')}"
        )
        chain = ""
        if link.child == link.parent:
            chain, wanted = self._ancestors(link, pair)
        return (
            f"{chain}INSERT INTO {pair.diff} (change, {', '.join(names)}, origin) SELECT 'I', {', '.join(keys)}, {link.child} FROM {pair.stage} AS p"
            f" WHERE EXISTS ({wanted})"
            f" AND NOT EXISTS (SELECT FROM {pair.table.source} AS t WHERE {there}){taken}"
            f" AND NOT EXISTS (SELECT FROM {pair.diff} AS y WHERE {pair.on_stage('p', 'y')})"
            f" AND NOT EXISTS (SELECT FROM {pair.left} AS y WHERE {pair.on_stage('p', 'y')})"
        )

    @staticmethod
    def _ancestors(link: ForeignKey, pair: Pair) -> tuple[str, str]:
        """A query for all that rows of a table refer to in it, as far as it is gone; and whether `p` is among it."""
        names = [f"f{n}" for n in range(len(link.columns))]
        both = list(zip(link.parent_columns, link.equals, names, strict=True))
        fields = {alias: ", ".join(f"{alias}.{ident(c)} AS f{n}" for n, c in enumerate(link.columns)) for alias in "sn"}
        up = " AND ".join(f"n.{ident(p)} {equals} w.{f}" for p, equals, f in both)
        there = " AND ".join(f"t.{ident(p)} {equals} w.{f}" for p, equals, f in both)
        chain = (
            f"WITH RECURSIVE w AS (SELECT {fields['s']} FROM {pair.diff} AS d JOIN {pair.stage} AS s ON {pair.on_stage('s')}"
            f" WHERE d.change IN ('I', 'U') UNION SELECT {fields['n']} FROM w JOIN {pair.stage} AS n ON {up}"
            f" WHERE NOT EXISTS (SELECT FROM {pair.table.source} AS t WHERE {there})) "
        )
        return chain, f"SELECT FROM w WHERE {' AND '.join(f'p.{ident(p)} {equals} w.{f}' for p, equals, f in both)}"

    # -------------------------------------------------------- what is withheld

    def _follows(self, link: ForeignKey) -> bool:
        """Whether rows that come back refer to something by this key."""
        return self._has(link.child, "I", "U") and set(link.columns) <= set(self.pairs[link.child].columns)

    def _withhold(self, link: ForeignKey) -> set[int]:
        """Rows that refer to what neither is there nor comes back."""
        if not self._follows(link):
            return set()
        because = f"'what it refers to in {_quoted(self.tables[link.parent].display)} does not come back'"
        pair = self.pairs[link.child]
        condition, recursive = self._without_parent(link), ""
        if link.child == link.parent and pair.key is not None and set(link.parent_columns) <= set(pair.key.columns):
            # An inserted row that is withheld is not there for those that refer to it.
            below = (
                f"JOIN {pair.diff} AS i ON i.change = 'I' AND {self._same_keys(pair, 'w', 'i')}"
                f" JOIN {pair.stage} AS n ON {pair.on_stage('n', 'w')} JOIN {pair.stage} AS s ON {_on(link, 'n', 's')}"
                f" JOIN {pair.diff} AS d ON d.change IN ('I', 'U') AND {pair.on_stage('s')}"
            )
            condition, recursive = self._with_chain(pair, condition, below)
        count = leave(self.connection, pair, condition, what="withheld", because=because, recursive=recursive)
        return self._note("withheld", link.child, link.parent, count)

    def _without_parent(self, link: ForeignKey) -> str:
        """A condition on diff rows `d` of the child: by the end there is no row that they refer to."""
        child, parent = self.pairs[link.child], self.pairs.get(link.parent)
        filled = " AND ".join(f"s.{ident(name)} IS NOT NULL" for name in link.columns)
        goes = comes = ""
        if parent is not None:
            by_key = parent.key is not None and set(link.parent_columns) <= set(parent.key.columns)
            gone = "D" if by_key else "DU"
            if self._has(link.parent, *gone):
                listed = ", ".join(f"'{each}'" for each in gone)
                same = parent.on_stage("p", "x")
                if parent.key is None:
                    same = "x.place = p.ctid AND x.relation = p.tableoid"
                goes = f" AND NOT EXISTS (SELECT FROM {parent.diff} AS x WHERE x.change IN ({listed}) AND {same})"
            if set(link.parent_columns) <= set(parent.columns) and self._has(link.parent, "I", "U"):
                comes = (
                    f" AND NOT EXISTS (SELECT FROM {parent.diff} AS y JOIN {parent.stage} AS n ON {parent.on_stage('n', 'y')}"
                    f" WHERE y.change IN ('I', 'U') AND {_on(link, 'n', 's')})"
                )
        source = self.tables[link.parent].source
        return (
            f"d.change IN ('I', 'U') AND EXISTS (SELECT FROM {child.stage} AS s WHERE {child.on_stage('s')} AND {filled}"
            f" AND NOT EXISTS (SELECT FROM {source} AS p WHERE {_on(link, 'p', 's')}{goes}){comes})"
        )

    def _withhold_from_strangers(self, link: ForeignKey) -> set[int]:
        """Rows that refer to a row of the backup whose key another row has: they would hang on a stranger."""
        parent = self.pairs.get(link.parent)
        if parent is None or not self._follows(link) or not set(link.parent_columns) <= set(parent.columns):
            return set()
        pair = self.pairs[link.child]
        collided = (
            f"d.change IN ('I', 'U') AND EXISTS (SELECT FROM {pair.stage} AS s JOIN {parent.stage} AS n ON {_on(link, 'n', 's')}"
            f" JOIN {parent.left} AS l ON {parent.on_stage('n', 'l')} WHERE {pair.on_stage('s')} AND l.another)"
        )
        because = f"'what it refers to in {_quoted(parent.table.display)} is another row now'"
        count = leave(self.connection, pair, collided, what="withheld", because=because)
        return self._note("withheld", link.child, link.parent, count)


def _on(link: ForeignKey, parent: str, child: str) -> str:
    pairs = zip(link.parent_columns, link.equals, link.columns, strict=True)
    return " AND ".join(f"{parent}.{ident(p)} {equals} {child}.{ident(c)}" for p, equals, c in pairs)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
