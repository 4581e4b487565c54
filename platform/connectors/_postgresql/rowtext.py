"""SQL that prints rows as the engine keeps them: key columns first, in the order of KeySpec.encode.

Integers and uuids sort natively, text under the C collation (through its UTF-8 bytes where the database
is encoded otherwise). Everything else sorts by the SHA-256 of the text that COPY prints: `concat` calls
the type's output function, where a cast to text would drop the blanks of char(n) or print booleans differently, and
`textsend` its bytes as the client gets them: UTF-8, but in a database without an encoding what is there.
A table without a key gets one made up: the SHA-256 of its whole row and the ordinal among equal rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from connectors._postgresql.catalogue import Table, TableColumn, key_kind
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.scope import Scope
from connectors._postgresql.unencoded import decode
from engine.ports import Column, KeySpec, unescape_field

RANGED_KINDS = ("int", "uuid")
"""Kinds of key that sort in the server as they do here, and whose text needs no quotes and no escapes."""
SYNTHETIC = KeySpec(("text", "int"), synthetic=2)


@dataclass(frozen=True, slots=True)
class RowText:
    """How one table's rows are printed; `utf8` says how the database is encoded."""

    table: Table
    columns: tuple[TableColumn, ...]
    key: KeySpec
    utf8: bool

    @classmethod
    def of(cls, table: Table, *, utf8: bool) -> "RowText":
        """Choose columns and key: generated columns are left out unless the key needs them."""
        key = table.key
        if key is None:
            return cls(table, tuple(c for c in table.columns if not c.generated), SYNTHETIC, utf8)
        first = tuple(table.column(name) for name in key.columns)
        rest = tuple(c for c in table.columns if c not in first and not c.generated)
        return cls(table, first + rest, KeySpec(tuple(key_kind(column) for column in first)), utf8)

    @property
    def key_columns(self) -> tuple[TableColumn, ...]:
        return self.columns[: len(self.key.kinds)] if not self.key.synthetic else ()

    @property
    def port_columns(self) -> tuple[Column, ...]:
        return tuple(Column(column.name, column.type, column.generated) for column in self.columns)

    def _order_by(self) -> str:
        terms = []
        for kind, column in zip(self.key.kinds, self.key_columns, strict=True):
            name = f"t.{ident(column.name)}"
            if kind in ("int", "uuid"):
                terms.append(name)
            elif kind == "text":
                terms.append(f'{name} COLLATE "C"' if self.utf8 else f"convert_to({name}, 'UTF8')")
            else:
                terms.append(f"sha256(textsend(concat({name})))")
        return ", ".join(terms)

    def select(self, scope: Scope, *, version: bool, leading: bool = True, ordered: bool = True) -> str:
        """Every row of the scope in key order; `version TAB row`, or the row alone when not `leading`.

        Unless `ordered` the rows come as they lie in the table; not for a key that is made up.
        """
        if self.key.synthetic:
            return self._select_synthetic(scope, leading=leading)
        head = ["t.xmin" if version else "''"] if leading else []
        names = ", ".join(head + [f"t.{ident(column.name)}" for column in self.columns])
        order = f" ORDER BY {self._order_by()}" if ordered else ""
        return f"{scope.with_clause}SELECT {names} FROM {self._rows_of(scope, version=version)}{order}"

    def select_versions(self, scope: Scope) -> str:
        """`xmin TAB key` of every row of the scope in key order."""
        assert not self.key.synthetic, "a made-up key has no version to compare"
        names = ", ".join(f"t.{ident(column.name)}" for column in self.key_columns)
        return (
            f"{scope.with_clause}SELECT t.xmin, {names} FROM {self._rows_of(scope, version=True)}"
            f" ORDER BY {self._order_by()}"
        )

    def _rows_of(self, scope: Scope, *, version: bool) -> str:
        """The rows of the scope as a FROM item.

        OFFSET 0 has few rows found first and sorted then: the planner, who expects many, would read the whole table in the order
        of an index.
        """
        rows = f"{self.table.source} AS t{scope.where}"
        return f"(SELECT {'t.xmin, ' if version else ''}t.* FROM {rows} OFFSET 0) AS t" if scope.row_by_row else rows

    def select_keys(self, scope: Scope, keys: Sequence[bytes], *, version: bool) -> str:
        """Lines of those keys, which the scope gave in the same snapshot, in key order.

        The scope is not asked again: its joins would be worked out anew for every few thousand keys. OFFSET 0 has each
        key looked up in its index: the planner would rather read all that lies between the first and the last.
        """
        if self.key.synthetic:
            listed = ", ".join("(" + literal(k[:64].decode()) + ", " + str(int(k[65:])) + ")" for k in keys)
            return self._select_synthetic(scope, leading=True, only=listed)
        fields = list(zip(*(key.split(b"\t") for key in keys), strict=True))
        arrays, names, joins = [], [], []
        assert self.table.key is not None, "a table with key columns has a key"
        own = zip(self.key.kinds, self.key_columns, fields, self.table.key.equals, strict=True)
        for n, (kind, column, texts, equals) in enumerate(own):
            # Unnesting takes composites and arrays apart; their texts stay whole.
            kept_as = "text" if column.composed else column.type
            arrays.append(f"CAST({_array_literal(texts, plain=kind in RANGED_KINDS)} AS {kept_as}[])")
            names.append(f"k{n}")
            wanted = f"CAST(k.k{n} AS {column.type})" if column.composed else f"k.k{n}"
            joins.append(f"t.{ident(column.name)} {equals} {wanted}")
        columns = ", ".join([*(["t.xmin"] if version else []), *(f"t.{ident(column.name)}" for column in self.columns)])
        head = columns if version else f"'', {columns}"
        return (
            f"SELECT {head} FROM unnest({', '.join(arrays)}) AS k({', '.join(names)})"
            f" CROSS JOIN LATERAL (SELECT {columns} FROM {self.table.source} AS t WHERE {' AND '.join(joins)} OFFSET 0)"
            f" AS t ORDER BY {self._order_by()}"
        )

    def hash_of_row(self) -> str:
        """SHA-256, hex, of the row's whole text; the made-up key's first field."""
        row = f"ROW({', '.join(f't.{ident(column.name)}' for column in self.columns)})::text" if self.columns else "''"
        return f"encode(sha256(textsend({row})), 'hex') COLLATE \"C\""

    def _select_synthetic(self, scope: Scope, *, leading: bool, only: str = "") -> str:
        names = "".join(f", t.{ident(column.name)}" for column in self.columns)
        head = "'', " if leading else ""
        taken = {column.name for column in self.columns}
        mark = fresh_name("lastro_hash", taken)
        number = fresh_name("lastro_ordinal", taken)
        inner = f"SELECT {self.hash_of_row()} AS {mark}{names} FROM {self.table.source} AS t{scope.where}"
        middle = f"SELECT t.*, row_number() OVER (PARTITION BY t.{mark}) AS {number} FROM ({inner}) AS t"
        where = f" WHERE (t.{mark}, t.{number}) IN (VALUES {only})" if only else ""
        return (
            f"{scope.with_clause}SELECT {head}t.{mark}, t.{number}{names} FROM ({middle}) AS t{where}"
            f" ORDER BY t.{mark}, t.{number}"
        )


def fresh_name(wanted: str, taken: set[str]) -> str:
    """A column name that no column of the table has."""
    name = wanted
    while name in taken:
        name += "_"
    return name


def _array_literal(texts: Sequence[bytes], *, plain: bool) -> str:
    """An array literal of COPY fields, every element quoted unless they are `plain`."""
    if plain:
        return literal("{" + b",".join(texts).decode() + "}")
    elements = [decode(unescape_field(text)).replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    return literal('{"' + '","'.join(elements) + '"}')
