"""Which rows belong to a tenant: the foreign-key closure over tables that many tenants share.

A row belongs to the tenant when
- its table has the tenant column and the column holds the tenant's value; or
- its table is the one that the tenant column refers to (the tenants' own table) and its key is the value; or
- its table has no tenant column, and one of its foreign keys leads to a row that belongs to the tenant while
  none leads to a row that belongs to another tenant. A row between two tenants therefore belongs to
  neither: restoring one of them can then never change what the other one sees.

A reference that is null, or that leads to a row of no tenant at all, neither gives nor denies. Tables that
are only referred to (countries, currencies) are shared: never kept, never written. References among
tables that refer to each other in a circle are followed in the order in which the tables were found.

Each table's rows become one `WITH` query that its children read, so that the text stays linear in the
number of foreign keys, however the paths join.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from connectors._postgresql.catalogue import Catalogue, ForeignKey, Table
from connectors._postgresql.quoting import ident, literal
from engine.errors import UsageError


@dataclass(frozen=True, slots=True)
class Scope:
    """Rows of one table that belong to the source: `WITH ctes … WHERE condition`, the table's alias being `t`."""

    table: Table
    condition: str
    ctes: tuple[str, ...]
    reason: str
    others: str = ""
    """Rows that belong to another tenant, with `others_ctes`; a row that is neither belongs to nobody."""
    others_ctes: tuple[str, ...] = ()
    row_by_row: bool = False
    """The condition looks each row up in several tables, and the planner takes it to hold for half of them."""

    @property
    def with_clause(self) -> str:
        return f"WITH {', '.join(self.ctes)} " if self.ctes else ""

    @property
    def where(self) -> str:
        return f" WHERE {self.condition}" if self.condition else ""

    @property
    def text(self) -> str:
        """What decides which rows belong, for the fingerprint."""
        return f"{self.with_clause}{self.condition}"


@dataclass(frozen=True, slots=True)
class Selection:
    scopes: tuple[Scope, ...]
    warnings: tuple[str, ...] = ()
    compared: tuple[tuple[Table, str], ...] = ()
    """Columns that are compared with the tenant's value."""


def matches(table: Table, patterns: Sequence[str]) -> bool:
    """Whether a pattern (`table`, `schema.table`, `*` as in the shell) names the table."""
    names = (table.name, f"{table.schema}.{table.name}", table.display)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def select_all(catalogue: Catalogue, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Selection:
    """Every table whole: the layouts `database` and `schema`."""
    chosen = [t for t in catalogue.tables.values() if (not include or matches(t, include)) and not matches(t, exclude)]
    chosen.sort(key=lambda table: (table.schema, table.name))
    return Selection(tuple(Scope(table, "", (), "the whole table") for table in chosen))


def select_tenant(
    catalogue: Catalogue,
    *,
    column: str,
    value: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ignored_links: Sequence[str] = (),
) -> Selection:
    """The rows of one tenant; UsageError when no table has the tenant column."""
    return _Closure(catalogue, column, value, include, exclude, ignored_links).selection()


NESTED_LINKS_MAX = 6
"""References of one table that are told apart case by case; the text of it grows with their square."""
RELATION = "lastro_relation"
"""Where a parent's row lies, for foreign keys that refer to one partition."""


def _lies_in(relation: str, leaves: Sequence[int]) -> str:
    return f"{relation} = ANY (ARRAY[{', '.join(map(str, leaves))}]::oid[])"


class _Closure:
    def __init__(
        self,
        catalogue: Catalogue,
        column: str,
        value: str,
        include: Sequence[str],
        exclude: Sequence[str],
        ignored: Sequence[str],
    ) -> None:
        self._column, self._value = column, value
        self._tables = {
            oid: table
            for oid, table in catalogue.tables.items()
            if (not include or matches(table, include)) and not matches(table, exclude)
        }
        self._links = [
            link
            for link in catalogue.foreign_keys
            if link.child in self._tables and link.parent in self._tables and not self._ignored(link, ignored)
        ]
        self._found: dict[int, tuple[str, str, str]] = {}
        """Tables that say whose a row is: (condition for mine, condition for another's, reason)."""
        self._order: list[int] = []
        self._through: dict[int, list[ForeignKey]] = {}
        self._warnings: list[str] = []
        self._compared: list[tuple[Table, str]] = []

    def _ignored(self, link: ForeignKey, ignored: Sequence[str]) -> bool:
        child = self._tables[link.child]
        return any(name in (link.name, f"{child.name}.{link.name}", f"{child.display}.{link.name}") for name in ignored)

    def selection(self) -> Selection:
        self._find_columns()
        self._find_tenant_rows()
        if not self._found:
            raise UsageError(
                f"no table has the column {self._column!r}",
                hint="check tenant_column, the schema, and that the role may use it",
            )
        self._order = sorted(self._found, key=lambda oid: (self._tables[oid].schema, self._tables[oid].name))
        self._follow()
        return Selection(tuple(self._scopes()), tuple(self._warnings), tuple(self._compared))

    def _find_columns(self) -> None:
        for oid, table in self._tables.items():
            for column in table.columns:
                if column.name == self._column:
                    self._found[oid] = self._compare(table, column.name, "has the tenant column")

    def _compare(self, table: Table, column: str, reason: str) -> tuple[str, str, str]:
        known = table.column(column)
        name, wanted = f"t.{ident(column)}", f"CAST({literal(self._value)} AS {known.plain_type})"
        self._compared.append((table, column))
        # The plain comparison may use an index. It is the type's own, so that citext knows no upper and lower case.
        mine = f"{name} {known.equals} {wanted}"
        return mine, f"{name} <> {wanted}" if known.equals == "=" else f"NOT ({mine})", reason

    def _find_tenant_rows(self) -> None:
        """The table the tenant column refers to: its row with the tenant's key is the tenant's own."""
        owners = {
            (link.parent, link.parent_columns[0])
            for link in self._links
            if link.child in self._found and link.columns == (self._column,) and link.parent not in self._found
        }
        for oid, column in sorted(owners):
            self._found[oid] = self._compare(self._tables[oid], column, "holds the tenant's own row")

    def _follow(self) -> None:
        """Breadth first from the tables that say whose a row is; a link against that order is not followed."""
        frontier = set(self._order)
        known = set(self._order)
        while frontier:
            found = {link.child for link in self._links if link.parent in frontier and link.child not in known}
            self._order += sorted(found, key=lambda oid: (self._tables[oid].schema, self._tables[oid].name))
            known |= found
            frontier = found
        children = [oid for oid in self._order if oid not in self._found]
        rank = self._acyclic_rank(children)
        for oid in children:
            links = [link for link in self._links if link.child == oid and link.parent in known and link.parent != oid]
            self._through[oid] = [link for link in links if rank.get(link.parent, -1) < rank[oid]]
        self._order = [oid for oid in self._order if oid in self._found] + sorted(children, key=lambda oid: rank[oid])

    def _acyclic_rank(self, children: list[int]) -> dict[int, int]:
        """Order children so that parents come first wherever there is no circle."""
        pending = list(children)
        rank: dict[int, int] = {}
        while pending:
            open_set = set(pending)
            ready = [
                oid
                for oid in pending
                if not any(link.child == oid and link.parent in open_set and link.parent != oid for link in self._links)
            ]
            if not ready:
                # A circle: the table found first goes first, but only one that a settled table leads to.
                ready = [next(oid for oid in pending if self._led_to(oid, set(rank)))]
                self._warnings.append(f"{self._tables[ready[0]].display} refers to a table that refers back to it")
            for oid in ready:
                rank[oid] = len(rank)
            pending = [oid for oid in pending if oid not in rank]
        return rank

    def _led_to(self, oid: int, settled: set[int]) -> bool:
        reached = settled | set(self._found)
        return any(link.child == oid and link.parent in reached for link in self._links)

    def _scopes(self) -> list[Scope]:
        label = {oid: f"m{n}" for n, oid in enumerate(self._order)}
        ctes: dict[int, tuple[str, str]] = {}
        scopes = []
        for oid in self._order:
            table = self._tables[oid]
            if oid in self._found:
                mine, others, reason = self._found[oid]
            else:
                mine, others = self._child_conditions(oid, label)
                reason = "through " + ", ".join(sorted(link.name for link in self._through[oid]))
            referring = [link for link in self._links if link.parent == oid]
            columns = [f"t.{ident(c)}" for c in sorted({c for link in referring for c in link.parent_columns})]
            if columns:
                columns += [f"t.tableoid AS {RELATION}"] if any(link.parent_leaves for link in referring) else []
                # What is read several times would be made a copy of, in which nothing can be looked up.
                how = "AS NOT MATERIALIZED" if oid in self._found else "AS"
                select = f"SELECT {', '.join(columns)} FROM {table.source} AS t WHERE "
                ctes[oid] = (f"{label[oid]} {how} ({select}{mine})", f"{label[oid]}o {how} ({select}{others})")
            needed = self._needed(oid, mine, ctes)
            several = len(self._through.get(oid, ())) > 1
            others_needed = self._needed(oid, others, ctes)
            scopes.append(Scope(table, mine, needed, reason, others, others_needed, row_by_row=several))
        return scopes

    def _child_conditions(self, oid: int, label: dict[int, str]) -> tuple[str, str]:
        links = self._through[oid]
        mine = " OR ".join(self._exists(link, label[link.parent]) for link in links)
        others = " OR ".join(self._exists(link, label[link.parent] + "o") for link in links)
        if len(links) > 1:
            mine = self._mine_by_several(links, [label[link.parent] for link in links])
        return mine, others

    def _mine_by_several(self, links: Sequence[ForeignKey], ctes: Sequence[str]) -> str:
        """Whether one of the references leads to this tenant and none to another.

        The order counts: a row is looked up among the other tenants' parents, nearly all there are, only when no parent of
        this tenant's settles the reference.
        """
        mine = [self._exists(link, cte) for link, cte in zip(links, ctes, strict=True)]
        denied = [self._not_denied(link, cte, known=False) for link, cte in zip(links, ctes, strict=True)]
        if len(links) > NESTED_LINKS_MAX:
            return f"CASE WHEN {' OR '.join(mine)} THEN {' AND '.join(denied)} ELSE false END"
        cases = []
        for n, condition in enumerate(mine):
            before = [self._not_denied(link, cte, known=True) for link, cte in zip(links[:n], ctes[:n], strict=True)]
            # A period may be covered by rows of several tenants.
            after = denied[n:] if links[n].period else denied[n + 1 :]
            cases.append(f"WHEN {condition} THEN {' AND '.join([*before, *after])}")
        return f"CASE {' '.join(cases)} ELSE false END"

    def _not_denied(self, link: ForeignKey, cte: str, *, known: bool) -> str:
        """Whether a row refers to no row of another tenant; `known`: it refers to none of this tenant's.

        A row refers to one row at the most, so that one of this tenant's settles it.
        """
        none = f"NOT {self._exists(link, cte + 'o')}"
        if link.period or link.parent not in self._found:
            return none
        settled = " OR ".join(f"t.{ident(column)} IS NULL" for column in link.columns)
        return f"({settled} OR {none})" if known else f"({settled} OR {self._exists(link, cte)} OR {none})"

    @staticmethod
    def _exists(link: ForeignKey, cte: str) -> str:
        pairs = zip(link.parent_columns, link.equals, link.columns, strict=True)
        on = [f"{cte}.{ident(parent)} {equals} t.{ident(child)}" for parent, equals, child in pairs]
        on += [_lies_in(f"{cte}.{RELATION}", link.parent_leaves)] if link.parent_leaves else []
        exists = f"EXISTS (SELECT FROM {cte} WHERE {' AND '.join(on)})"
        return f"({_lies_in('t.tableoid', link.child_leaves)} AND {exists})" if link.child_leaves else exists

    def _needed(self, oid: int, condition: str, ctes: dict[int, tuple[str, str]]) -> tuple[str, ...]:
        """The WITH queries that this condition reads, parents first."""
        wanted: set[int] = set()
        pending = [oid]
        while pending:
            for link in self._through.get(pending.pop(), ()):
                if link.parent not in wanted:
                    wanted.add(link.parent)
                    pending.append(link.parent)
        chosen = [cte for parent in self._order if parent in wanted for cte in ctes[parent]]
        text = " ".join([condition, *chosen])
        return tuple(cte for cte in chosen if f"FROM {cte.split(' ', 1)[0]} " in text)
