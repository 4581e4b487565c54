"""What references and unique values allow of a change set.

All conditions speak about the final state: rows of the target that are neither deleted nor replaced, and rows that the change set
puts there. A change that cannot be made is taken out, and the question is asked again until nothing more goes: what
refers to it may have to go as well. What comes along with a selection is found anew each time, so that
nothing comes along for the sake of a row that was taken out.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from connectors._sqlite.catalog import Catalog, ForeignKey, Index, SpecialUnique, Table, quote
from connectors._sqlite.changes import TableChanges
from engine.plans import Dependency

_OUT = "temp.lastro_out"


@dataclass(frozen=True, slots=True)
class Relation:
    """A foreign key between two tables, of which at least one has a change set."""

    key: ForeignKey
    child: Table
    parent: Table
    below: TableChanges | None
    """Changes of the child table."""
    above: TableChanges | None
    child_exists: bool
    parent_exists: bool

    def adapted(self, values: Sequence[str]) -> list[str]:
        """Values of the child as the parent's columns would hold them: neither has an affinity in a change set."""
        out = []
        for value, own, theirs in zip(values, self.key.columns, self.key.parent_columns, strict=True):
            one, other = _affinity(self.child, own), _affinity(self.parent, theirs)
            if one == other or "BLOB" in (one, other):
                out.append(value)
            elif other == "TEXT":
                out.append(
                    f"CASE WHEN typeof({value}) IN ('integer', 'real') THEN CAST({value} AS TEXT) ELSE {value} END"
                )
            else:
                number = f"CAST({value} AS NUMERIC)"
                out.append(
                    f"CASE WHEN typeof({value}) = 'text' AND CAST({number} AS TEXT) = {value} THEN {number} ELSE {value} END"
                )
        return out


def _affinity(table: Table, column: str) -> str:
    """TEXT, BLOB or NUMERIC, by the rules of SQLite (documentation, "Datatypes", 3.1)."""
    found = table.column(column)
    declared = found.type.upper() if found else ""
    if "INT" in declared:
        return "NUMERIC"
    if any(each in declared for each in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    return "BLOB" if not declared or "BLOB" in declared else "NUMERIC"


def _values(changes: TableChanges, columns: Sequence[str], alias: str) -> list[str]:
    """The changes' values of columns; NULL for a column that only the target has, which then refers to nothing."""
    return [changes.value(each, alias) or "NULL" for each in columns]


def _lives(columns: Sequence[str], alias: str) -> list[str]:
    return [f"{alias}.{quote(each)}" for each in columns]


def _equal(left: Sequence[str], right: Sequence[str], operator: str = "=") -> str:
    return " AND ".join(f"{a} {operator} {b}" for a, b in zip(left, right, strict=True))


def _present(values: Sequence[str]) -> str:
    return " AND ".join(f"{each} IS NOT NULL" for each in values)


def relations_of(catalog: Catalog, changes: dict[str, TableChanges], missing: dict[str, Table]) -> list[Relation]:
    """Every foreign key that SQLite could check and that touches a change set."""
    tables = {each.name.lower(): each for each in [*catalog.plain, *missing.values()]}
    gone = {each.name for each in missing.values()}
    found = []
    for child in tables.values():
        for key in child.foreign_keys:
            parent = tables.get(key.parent.lower())
            if parent is None or not _keyed(parent, key.parent_columns):
                continue
            below, above = changes.get(child.name), changes.get(parent.name)
            if below is not None or above is not None:
                found.append(
                    Relation(key, child, parent, below, above, child.name not in gone, parent.name not in gone)
                )
    return found


def _keyed(table: Table, columns: Sequence[str]) -> bool:
    wanted = {each.lower() for each in columns}
    return any({each.lower() for each in index.columns} == wanted for index in table.uniques)


@dataclass
class References:
    """The fixed point over all tables of one plan."""

    connection: sqlite3.Connection
    changes: dict[str, TableChanges]
    relations: list[Relation]
    check: Callable[[], None]
    modules: frozenset[str] | None = None
    """The selection; None when everything is selected."""
    dependencies: list[Dependency] = field(default_factory=list)
    moved: bool = False
    """Whether any row was taken out or brought along."""

    # ------------------------------------------------ the fixed point

    def settle(self) -> None:
        """Take out what cannot be done, and bring along what a selection needs.

        What collides goes first, then deletions of what is still referred to, then rows that refer to nothing: so the same
        rows go in whatever order tables and keys are looked at.
        """
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS {_OUT} (id INTEGER PRIMARY KEY)")
        while True:
            self._bring_along()
            if not (self._repeat(self._colliding) or self._repeat(self._needed) or self._repeat(self._orphaned)):
                break
        self._explain()

    def _repeat(self, level: Callable[[], int]) -> int:
        """Until nothing more goes; how much went."""
        total = 0
        while count := level():
            total += count
        return total

    def _colliding(self) -> int:
        return sum(
            self._exclude(table, select, "collision", None)
            for table in self.changes.values()
            for select, _ in self.all_collisions(table)
        )

    def _needed(self) -> int:
        count = 0
        for relation in self.relations:
            self.check()
            if relation.above is not None and relation.above.removes:
                count += self._exclude(relation.above, self.still_needed(relation), "stays", relation.child.name)
        return count

    def _orphaned(self) -> int:
        count = 0
        for relation in self.relations:
            self.check()
            if relation.below is not None and relation.below.adds:
                count += self._exclude(
                    relation.below, self._with_descendants(relation), "withheld", relation.parent.name
                )
        return count

    def _with_descendants(self, relation: Relation) -> str | None:
        """Orphans, and of a table that refers to itself at once all that hangs on them: chains may be long."""
        select, below = self.orphans(relation), relation.below
        if select is None or below is None or relation.child is not relation.parent:
            return select
        own = _values(below, relation.key.columns, "d")
        theirs = _values(below, relation.key.parent_columns, "p")
        if "NULL" in theirs:
            return select
        below.index_on(relation.key.columns)
        return (
            f"WITH RECURSIVE out(id) AS ({select} UNION SELECT d.id FROM out CROSS JOIN {below.temp} p "
            f"ON p.id = out.id AND p.op = 0 CROSS JOIN {below.temp} d ON {_equal(relation.adapted(own), theirs)} "
            "AND d.act = 1 AND d.op <> 1) SELECT id FROM out"
        )

    def withhold(self, erased: frozenset[str]) -> None:
        """Take out only what refers to rows of those tables that do not come back, and what refers to it in turn."""
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS {_OUT} (id INTEGER PRIMARY KEY)")
        count = 1
        while count:
            count = 0
            for relation in self.relations:
                self.check()
                above, below = relation.above, relation.below
                if above is None or below is None or not below.adds or not (above.name in erased or above.leaves):
                    continue
                count += self._exclude(below, self._with_descendants(relation), "withheld", relation.parent.name)
        self._explain()

    def _exclude(self, table: TableChanges, select: str | None, why: str, other: str | None) -> int:
        if select is None:
            return 0
        count = self._list(select)
        if count:
            table.leaves = self.moved = True
            self.connection.execute(
                f"UPDATE {table.temp} SET act = 0, along = 0, why = ?, other = ? WHERE id IN (SELECT id FROM {_OUT})",
                (why, other),
            )
        return count

    def _list(self, select: str) -> int:
        """Collect ids first: the statement that finds them reads the table that is to change."""
        self.connection.execute(f"DELETE FROM {_OUT}")
        return self.connection.execute(f"INSERT OR IGNORE INTO {_OUT} {select}").rowcount

    def _bring_along(self) -> None:
        if self.modules is None:
            return
        for table in self.changes.values():
            self.connection.execute(
                f"UPDATE {table.temp} SET act = 0, along = 0, why = 'kept', other = NULL WHERE along = 1"
            )
        grown = True
        while grown:
            grown = False
            for relation in self.relations:
                self.check()
                grown = self._along(relation) or grown

    def _along(self, relation: Relation) -> bool:
        below, above = relation.below, relation.above
        if below is None or above is None or above.selected or not below.adds:
            return False
        values, wanted = _values(above, relation.key.parent_columns, "p"), _values(below, relation.key.columns, "d")
        if "NULL" in values or "NULL" in wanted:
            return False
        above.index_on(relation.key.parent_columns)
        select = (
            f"SELECT p.id FROM {below.temp} d CROSS JOIN {above.temp} p ON {_equal(values, relation.adapted(wanted))} "
            f"WHERE d.act = 1 AND d.op <> 1 AND p.act = 0 AND p.op = 0 AND p.why = 'kept' "
            f"AND NOT {self._parent_final(relation, wanted)}"
        )
        if not self._list(select):
            return False
        self.connection.execute(
            f"UPDATE {above.temp} SET act = 1, along = 1, why = NULL, other = ? WHERE id IN (SELECT id FROM {_OUT})",
            (relation.child.name,),
        )
        above.adds = self.moved = True
        return True

    # ------------------------------------------------ conditions

    def _parent_final(self, relation: Relation, wanted: Sequence[str]) -> str:
        """Whether a row with those values is there at the end."""
        parts, above = [], relation.above
        columns = relation.key.parent_columns
        if relation.parent_exists:
            gone = f" AND NOT {above.gone('p1')}" if above is not None and above.removes else ""
            parts.append(
                f"EXISTS (SELECT 1 FROM main.{quote(relation.parent.name)} p1 WHERE {_equal(_lives(columns, 'p1'), wanted)}{gone})"
            )
        if above is not None and above.adds:
            values = _values(above, columns, "p2")
            above.index_on(columns)
            parts.append(
                f"EXISTS (SELECT 1 FROM {above.temp} p2 WHERE {_equal(values, relation.adapted(wanted))} "
                "AND p2.act = 1 AND p2.op <> 1)"
            )
        return f"({' OR '.join(parts) or '0'})"

    def _strange(self, relation: Relation, wanted: Sequence[str]) -> str:
        """Whether those values mean a row of the backup that does not come back: what has them is another thing."""
        above = relation.above
        values = _values(above, relation.key.parent_columns, "s") if above is not None else ["NULL"]
        if above is None or not above.leaves or "NULL" in values:
            return "0"
        above.index_on(relation.key.parent_columns)
        return (
            f"EXISTS (SELECT 1 FROM {above.temp} s WHERE {_equal(values, relation.adapted(wanted))} "
            "AND s.act = 0 AND (s.op = 0 OR s.stranger = 1))"
        )

    def orphans(self, relation: Relation) -> str | None:
        """Changes of the child table that would refer to nothing, or to a stranger, and do not refer to nothing already."""
        below = relation.below
        assert below is not None, "the caller asks for children that change"
        values = _values(below, relation.key.columns, "d")
        if "NULL" in values:
            return None
        missing = f"NOT {self._parent_final(relation, values)}"
        if relation.child_exists and below.removes:
            same = _equal(_lives(relation.key.columns, "c"), values, "IS")
            before = "0"
            if relation.parent_exists:
                columns = _lives(relation.key.parent_columns, "p0")
                before = f"EXISTS (SELECT 1 FROM main.{quote(relation.parent.name)} p0 WHERE {_equal(columns, values)})"
            missing += (
                f" AND NOT (d.op = 2 AND NOT {before} AND EXISTS "
                f"(SELECT 1 FROM {below.live} c WHERE {below.same_row('d', 'c')} AND {same}))"
            )
        return (
            f"SELECT d.id FROM {below.temp} d WHERE d.act = 1 AND d.op <> 1 AND {_present(values)} "
            f"AND (({missing}) OR {self._strange(relation, values)})"
        )

    def still_needed(self, relation: Relation) -> str | None:
        """Changes of the parent table that take away what rows refer to at the end."""
        above, below = relation.above, relation.below
        assert above is not None, "the caller asks for parents that change"
        columns = relation.key.parent_columns
        old = [f"+{each}" for each in _lives(columns, "p")]
        needed = []
        if relation.child_exists:
            gone = f" AND NOT {below.gone('c')}" if below is not None and below.removes else ""
            child, own = f"main.{quote(relation.child.name)}", _lives(relation.key.columns, "c")
            if _indexed(relation.child, relation.key.columns):
                needed.append(f"EXISTS (SELECT 1 FROM {child} c WHERE {_equal(old, own)}{gone})")
            else:
                # Without an index each lookup would read the whole table: its values are listed once instead.
                needed.append(
                    f"({', '.join(old)}) IN (SELECT {', '.join(own)} FROM {child} c WHERE {_present(own)}{gone})"
                )
        if below is not None and below.adds:
            values = _values(below, relation.key.columns, "c2")
            if "NULL" not in values:
                below.index_on(relation.key.columns)
                needed.append(
                    f"EXISTS (SELECT 1 FROM {below.temp} c2 WHERE {_equal(relation.adapted(values), old)} "
                    "AND c2.act = 1 AND c2.op <> 1)"
                )
        if not needed:
            return None
        after = _values(above, columns, "d")
        changed = f"(d.op = 1 OR NOT ({_equal(old, after, 'IS')}))" if "NULL" not in after else "d.op = 1"
        return (
            f"SELECT d.id FROM {above.temp} d CROSS JOIN {above.live} p ON {above.same_row('d', 'p')} "
            f"WHERE d.act = 1 AND d.op > 0 AND {changed} AND {_present(old)} AND ({' OR '.join(needed)}) "
            f"AND NOT {self._parent_final(relation, old)}"
        )

    def collisions(self, table: TableChanges, unique: Index) -> str | None:
        """Changes whose unique values belong to a row that stays."""
        values = _values(table, unique.columns, "d")
        if not table.exists or not table.adds or "NULL" in values:
            return None
        taken = " AND ".join(
            f"m.{quote(name)} = {value} COLLATE {quote(collation)}"
            for name, value, collation in zip(unique.columns, values, unique.collations, strict=True)
        )
        return (
            f"SELECT d.id FROM {table.temp} d WHERE d.act = 1 AND d.op <> 1 AND {_present(values)} "
            f"AND EXISTS (SELECT 1 FROM {table.live} m WHERE {taken} AND NOT {table.gone('m')})"
        )

    def special_collisions(self, table: TableChanges, unique: SpecialUnique) -> str | None:
        """The same for an index of expressions, or of some rows only: its own text is asked."""
        if not table.exists or not table.adds or not all(table.value(each.name, "d") for each in table.table.columns):
            return None  # Of generated columns, and of new ones, nothing can be said before the rows are there.
        named = ", ".join(f"{table.value(each.name, 'd')} AS {quote(each.name)}" for each in table.table.stored)
        values = [f"v{at}" for at in range(len(unique.expressions))]
        select = ", ".join(f"({text}) AS {value}" for text, value in zip(unique.expressions, values, strict=True))
        # The inner names may be those of the table's own columns.
        return (
            f"SELECT lastro_id FROM (SELECT lastro_id, {select} FROM (SELECT d.id AS lastro_id, {named} FROM {table.temp} d "
            f"WHERE d.act = 1 AND d.op <> 1) WHERE {unique.condition}) WHERE {_present(values)} AND ({', '.join(values)}) IN "
            f"(SELECT {', '.join(f'({text})' for text in unique.expressions)} FROM {table.live} m "
            f"WHERE ({unique.condition}) AND NOT {table.gone('m')})"
        )

    def all_collisions(self, table: TableChanges) -> Iterator[tuple[str | None, str]]:
        """A query of colliding changes for each unique key of a table, and the key as shown to people."""
        for unique in table.table.uniques:
            yield self.collisions(table, unique), ", ".join(unique.columns)
        for special in table.table.specials:
            yield self.special_collisions(table, special), ", ".join(special.expressions)

    # ------------------------------------------------ what it comes to

    def count(self, select: str | None) -> int:
        return 0 if select is None else self.connection.execute(f"SELECT count(*) FROM ({select})").fetchone()[0]

    def broken(self) -> Iterator[tuple[Relation, int]]:
        """References that the change set as it is would break, relation by relation."""
        for relation in self.relations:
            self.check()
            count = 0
            if relation.below is not None and relation.below.adds:
                count += self.count(self.orphans(relation))
            if relation.above is not None and relation.above.removes:
                count += self.count(self.still_needed(relation))
            if count:
                yield relation, count

    def _explain(self) -> None:
        for table in self.changes.values():
            rows = self.connection.execute(
                f"SELECT CAST(coalesce(why, 'along') AS BLOB), CAST(other AS BLOB), count(*) FROM {table.temp} "
                "WHERE other IS NOT NULL GROUP BY why, other ORDER BY why, other"
            ).fetchall()
            for kind, other, count in rows:
                name = other.decode()
                module = table.module if kind == b"along" else self._module(table, name, kind)
                self.dependencies.append(Dependency(kind.decode(), table.name, name, count, module))

    def _module(self, table: TableChanges, other: str, kind: bytes) -> str:
        """The module that would have to be selected as well, when it has changes of the kind that would help."""
        theirs = self.changes.get(other)
        if self.modules is None or theirs is None or theirs.selected:
            return ""
        op = "op = 1" if kind == b"stays" else "op <> 1"
        found = self.connection.execute(f"SELECT 1 FROM {theirs.temp} WHERE why = 'kept' AND {op} LIMIT 1").fetchone()
        return theirs.module if found else ""


def _indexed(table: Table, columns: Sequence[str]) -> bool:
    wanted = {each.lower() for each in columns}
    if table.alias and wanted == {table.alias.lower()}:
        return True
    return any(
        not index.partial and {each.lower() for each in index.columns[: len(columns)]} == wanted
        for index in table.indexes
    )
