"""What the server's catalogues say about tables: columns, keys, foreign keys, types, partitions.

Everything is read in a handful of queries whatever the number of tables, and kept as frozen values.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors._postgresql import unencoded
from connectors._postgresql.connection import Connection, rows
from connectors._postgresql.quoting import display_name, ident, literal
from engine.ports import KeyKind

INTEGERS = {"int2", "int4", "int8", "oid"}
PLAIN_TEXTS = {"text", "varchar"}
NAMED_BY_REFERENCE = {
    "regclass", "regcollation", "regconfig", "regdictionary", "regnamespace", "regoper", "regoperator", "regproc",
    "regprocedure", "regrole", "regtype", "aclitem",
}  # fmt: skip
"""Types that print another object's name: the text changes when that object is renamed, the row does not."""


@dataclass(frozen=True, slots=True)
class TableColumn:
    number: int
    name: str
    type: str
    type_oid: int
    base: str
    """Name of the built-in type below any domains, "" for a type that is not built in."""
    not_null: bool
    generated: bool
    identity: str
    default: str | None
    plain_type: str = ""
    """The type below any domains and without a length: what a value is read as, so that none is cut to fit."""
    equals: str = "="
    """Its equality operator, quoted where the type is not built in: `=` would fall back on another type's."""
    composed: bool = False
    """An array or a composite."""

    @property
    def caseless(self) -> bool:
        """Whether upper and lower case are equal to the type."""
        return self.plain_type.rpartition(".")[2] == "citext"


@dataclass(frozen=True, slots=True)
class Key:
    """A primary key or a unique index over plain columns; `equals` are its equality operators, quoted."""

    name: str
    columns: tuple[str, ...]
    equals: tuple[str, ...]
    primary: bool


@dataclass(frozen=True, slots=True)
class ForeignKey:
    name: str
    child: int
    parent: int
    columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    equals: tuple[str, ...]
    """parent column OPERATOR child column"""
    deferrable: bool
    validated: bool
    child_part: str = ""
    """Quoted name of the one partition of the child that the constraint is on, "" for the whole table."""
    parent_part: str = ""
    """Quoted name of the one partition that it refers to, "" for the whole table."""
    period: bool = False
    """The last columns are ranges: the child's must be covered by those of all its parents together."""
    child_leaves: tuple[int, ...] = ()
    """Where the rows of `child_part` lie: oids that their `tableoid` has."""
    parent_leaves: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    oid: int
    schema: str
    name: str
    partitioned: bool
    columns: tuple[TableColumn, ...]
    keys: tuple[Key, ...]
    heap: bool
    """Every row lies in PostgreSQL's own heap, so that its xmin tells when it was written."""
    shape: str
    """Digest of columns (also dropped ones), defaults, partitions and reachable types."""
    names_objects: bool
    """Some column prints names of other objects (regclass …)."""
    tablespaces: tuple[str, ...] = ()
    foreign: bool = False
    partitions: tuple[tuple[str, str, str], ...] = ()
    """(schema, name, bound) of everything below a partitioned table, those above first."""

    @property
    def quoted(self) -> str:
        return ident(self.schema, self.name)

    @property
    def source(self) -> str:
        """What to put behind FROM: never the children of plain inheritance, always those of partitioning."""
        return self.quoted if self.partitioned else f"ONLY {self.quoted}"

    @property
    def display(self) -> str:
        return display_name(self.schema, self.name)

    def column(self, name: str) -> TableColumn:
        return next(column for column in self.columns if column.name == name)

    @property
    def key(self) -> Key | None:
        """The key by which rows are told apart: the primary one, else the first all-not-null unique one."""
        return self.keys[0] if self.keys else None


@dataclass(frozen=True, slots=True)
class Catalogue:
    tables: Mapping[int, Table]
    foreign_keys: tuple[ForeignKey, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Relations that hold rows and are left out, with the reason."""

    def find(self, schema: str, name: str) -> Table | None:
        for table in self.tables.values():
            if table.schema == schema and table.name == name:
                return table
        return None


FIRST_USER_OID = 16384
"""Objects below come with the server."""

COPY_MARK = "lastro: a restored copy of one tenant's rows; not part of its live data"
"""Comment of a schema that a restore made; remove it to let the schema's tables count as the tenant's."""
_USER_SCHEMA = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_NOT_EXTENSION = "NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')"

_RELATIONS = f"""
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, coalesce(s.spcname, ''),
       (SELECT coalesce(json_agg(json_build_array(l.relid::oid::int8, k.relkind, coalesce(m.amname, ''),
                        pg_get_expr(k.relpartbound, k.oid)) ORDER BY l.relid::oid), '[]')
          FROM pg_partition_tree(c.oid) l JOIN pg_class k ON k.oid = l.relid LEFT JOIN pg_am m ON m.oid = k.relam
         WHERE l.isleaf AND c.relkind = 'p'),
       coalesce(a.amname, ''), pg_get_partkeydef(c.oid),
       (SELECT coalesce(json_agg(json_build_array(m.nspname, k.relname, pg_get_expr(k.relpartbound, k.oid))
                        ORDER BY l.level, k.oid), '[]')
          FROM pg_partition_tree(c.oid) l JOIN pg_class k ON k.oid = l.relid JOIN pg_namespace m ON m.oid = k.relnamespace
         WHERE l.level > 0 AND c.relkind = 'p'),
       pg_is_in_recovery() AND (c.relpersistence = 'u' OR EXISTS
         (SELECT FROM pg_partition_tree(c.oid) l JOIN pg_class k ON k.oid = l.relid WHERE k.relpersistence = 'u'))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_am a ON a.oid = c.relam LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
 WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND {_USER_SCHEMA} AND {_NOT_EXTENSION}
"""

_COLUMNS = """
SELECT a.attrelid::int8, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid::int8, a.attnotnull,
       a.attgenerated::text, a.attidentity::text, a.attisdropped, a.atttypmod, a.attcollation::int8,
       a.attmissingval::text, pg_get_expr(d.adbin, d.adrelid)
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = ANY (ARRAY[{oids}]::oid[]) AND a.attnum > 0 ORDER BY a.attrelid, a.attnum
"""

# A key WITHOUT OVERLAPS lies in a GiST index, whose operators are not equality; rows without overlaps are not equal either.
_KEYS = """
SELECT i.indrelid::int8, x.relname, i.indisprimary, array_agg(a.attname ORDER BY k.n),
       array_agg(format('OPERATOR(%I.%s)', o.nspname, o.oprname) ORDER BY k.n), bool_and(a.attnotnull)
  FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
  CROSS JOIN LATERAL generate_series(0, i.indnkeyatts - 1) AS k(n)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n]
  JOIN pg_opclass c ON c.oid = i.indclass[k.n]
  JOIN LATERAL (SELECT p.oprname, n.nspname
                  FROM pg_opclass b JOIN pg_am v ON v.oid = b.opcmethod AND v.amname = 'btree'
                  JOIN pg_amop m ON m.amopfamily = b.opcfamily AND m.amopstrategy = 3
                       AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
                  JOIN pg_operator p ON p.oid = m.amopopr JOIN pg_namespace n ON n.oid = p.oprnamespace
                 WHERE b.oid = c.oid OR (c.opcmethod <> b.opcmethod AND b.opcdefault AND b.opcintype = c.opcintype)) o ON true
 WHERE i.indrelid = ANY (ARRAY[{oids}]::oid[]) AND i.indisunique AND i.indisvalid AND i.indimmediate
   AND i.indpred IS NULL AND i.indexprs IS NULL
 GROUP BY i.indrelid, i.indexrelid, x.relname, i.indisprimary, i.indnkeyatts
HAVING bool_and(a.attnotnull) AND count(*) = i.indnkeyatts
 ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, x.relname
"""

_PART = "CASE WHEN {0}.relispartition THEN format('%I.%I', {0}n.nspname, {0}.relname) ELSE '' END"
_LEAVES = (
    "CASE WHEN {0}.relispartition"
    " THEN ARRAY(SELECT l.relid::oid::int8 FROM pg_partition_tree({0}.oid) l WHERE l.isleaf ORDER BY 1) ELSE '{{}}' END"
)

# A constraint may be on one partition, or refer to one: it is the whole tables', limited to those rows.
_FOREIGN_KEYS = f"""
SELECT c.conname, coalesce(pg_partition_root(f.oid), f.oid)::oid::int8, coalesce(pg_partition_root(p.oid), p.oid)::oid::int8,
       array_agg(a.attname ORDER BY k.n), array_agg(b.attname ORDER BY k.n),
       array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY k.n), c.condeferrable, c.convalidated,
       {_PART.format("f")}, {_PART.format("p")}, coalesce((to_jsonb(c) ->> 'conperiod')::bool, false), {_LEAVES.format("f")}, {_LEAVES.format("p")}
  FROM pg_constraint c CROSS JOIN LATERAL generate_subscripts(c.conkey, 1) AS k(n)
  JOIN pg_class f ON f.oid = c.conrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace
  JOIN pg_class p ON p.oid = c.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[k.n]
  JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = c.confkey[k.n]
  JOIN pg_operator o ON o.oid = c.conpfeqop[k.n] JOIN pg_namespace n ON n.oid = o.oprnamespace
 WHERE c.contype = 'f' AND c.conparentid = 0
 GROUP BY c.oid, c.*, c.conname, c.condeferrable, c.convalidated, f.oid, f.relname, f.relispartition, fn.nspname,
          p.oid, p.relname, p.relispartition, pn.nspname
 ORDER BY 2, c.conname, f.oid
"""

_TYPES = """
SELECT t.oid::int8, n.nspname, t.typname, t.typtype::text, t.typbasetype::int8, t.typelem::int8, t.typtypmod,
       CASE WHEN t.typtype = 'e' THEN
         (SELECT array_agg(e.enumlabel::text ORDER BY e.oid) FROM pg_enum e WHERE e.enumtypid = t.oid) END,
       CASE WHEN t.typtype = 'c' AND t.oid >= 16384 THEN
         (SELECT json_agg(json_build_array(a.attnum, a.attname, a.atttypid::int8, a.atttypmod, a.attisdropped) ORDER BY a.attnum)
            FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0) END,
       CASE WHEN t.typtype IN ('r', 'm') AND t.oid >= 16384 THEN
         (SELECT array_agg(x.o::int8) FROM (
            SELECT r.rngsubtype AS o FROM pg_range r WHERE r.rngtypid = t.oid
            UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid) x) END,
       CASE WHEN t.oid >= 16384 THEN
         (SELECT e.extname || ' ' || e.extversion FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
           WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e' LIMIT 1) END,
       format_type(t.oid, -1),
       CASE WHEN t.oid >= 16384 THEN
         (SELECT format('OPERATOR(%I.%s)', s.nspname, o.oprname) FROM pg_opclass c JOIN pg_am a ON a.oid = c.opcmethod
            JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = t.oid AND m.amoprighttype = t.oid
            JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace s ON s.oid = o.oprnamespace
           WHERE c.opcintype = t.oid AND c.opcdefault AND a.amname = 'btree' AND m.amopstrategy = 3) END
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname <> 'information_schema'
"""


@dataclass(frozen=True, slots=True)
class _Type:
    schema: str
    name: str
    kind: str
    base: int
    below: tuple[int, ...]
    text: str
    full_name: str
    equals: str


class _Types:
    """All types of the database, walked from a column to everything its text depends on."""

    def __init__(self, connection: Connection) -> None:
        self._types: dict[int, _Type] = {}
        for row in rows(connection, _TYPES):
            oid, schema, name, kind, base, elem, typmod, labels, attributes, ranges, extension, full_name, equals = row
            below = [base, elem, *(ranges or ()), *(attribute[2] for attribute in attributes or ())]
            # A composite type's own array points back at it; only what it is made of counts.
            made_of = [oid, schema, name, kind, base, typmod, labels, attributes, extension]
            text = json.dumps(made_of) if oid >= FIRST_USER_OID else ""
            below_it = tuple(each for each in below if each)
            self._types[oid] = _Type(schema, name, kind, base, below_it, text, full_name, equals or "=")

    def reachable(self, oids: Iterable[int]) -> dict[int, _Type]:
        seen: dict[int, _Type] = {}
        pending = list(oids)
        while pending:
            oid = pending.pop()
            if oid in seen or oid not in self._types:
                continue
            seen[oid] = self._types[oid]
            pending.extend(seen[oid].below)
        return seen

    def base_name(self, oid: int) -> str:
        """Name of the built-in type below any domains; "" for other types."""
        found = self.plain(oid)
        return found.name if found is not None and found.schema == "pg_catalog" else ""

    def plain(self, oid: int) -> _Type | None:
        """The type below any domains."""
        found = self._types.get(oid)
        while found is not None and found.kind == "d":
            found = self._types.get(found.base)
        return found


def key_kind(column: TableColumn) -> KeyKind:
    """The KeySpec kind by which rows of this key column sort."""
    if column.base in INTEGERS:
        return "int"
    if column.base == "uuid":
        return "uuid"
    return "text" if column.base in PLAIN_TEXTS else "hash"


def read_catalogue(connection: Connection, *, schemas: Iterable[str] | None = None, copies: bool = True) -> Catalogue:
    """Read every user table (of `schemas`, or all) with what a backup and a restore need to know.

    Without `copies` schemas that a restore made beside the live tables are passed over: see COPY_MARK.
    """
    where = "" if copies else f" AND obj_description(n.oid, 'pg_namespace') IS DISTINCT FROM {literal(COPY_MARK)}"
    if schemas is not None:
        where += f" AND n.nspname = ANY (ARRAY[{', '.join(map(literal, schemas))}]::text[])"
    found = rows(connection, _RELATIONS + where)
    if not found:
        return Catalogue({}, ())
    oids = ", ".join(str(row[0]) for row in found)
    types = _Types(connection)
    attributes: dict[int, list[tuple[Any, ...]]] = {}
    for attribute in rows(connection, _COLUMNS.format(oids=oids)):
        attributes.setdefault(attribute[0], []).append(attribute)
    keys: dict[int, list[Key]] = {}
    for oid, name, primary, columns, equals, _ in rows(connection, _KEYS.format(oids=oids)):
        keys.setdefault(oid, []).append(Key(name, tuple(columns), tuple(equals), primary))
    unencoded.require_names(*(name for row in found for name in row[1:3]))
    tables, skipped = {}, {}
    for row in found:
        if row[3] == "f":
            skipped[display_name(row[1], row[2])] = "a foreign table: its rows lie on another server"
            continue
        if row[-1]:
            skipped[display_name(row[1], row[2])] = "an unlogged table: a standby has no rows of it"
            continue
        tables[row[0]] = table = _table(row, attributes.get(row[0], []), tuple(keys.get(row[0], ())), types)
        unencoded.require_names(*(each.name for each in table.columns), *(each[1] for each in table.partitions))
    links = (
        ForeignKey(
            n, c, p, tuple(cc), tuple(pc), tuple(eq), d, v, child_part, parent_part, period, tuple(cl), tuple(pl)
        )
        for n, c, p, cc, pc, eq, d, v, child_part, parent_part, period, cl, pl in rows(connection, _FOREIGN_KEYS)
    )
    return Catalogue(tables, tuple(link for link in links if link.child in tables and link.parent in tables), skipped)


_EXTENSION_ROWS = """
SELECT e.extname, format('%I.%I', n.nspname, c.relname), n.nspname, c.relname, coalesce(e.extcondition[k.n], '')
  FROM pg_extension e CROSS JOIN LATERAL generate_subscripts(e.extconfig, 1) AS k(n)
  JOIN pg_class c ON c.oid = e.extconfig[k.n] JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
"""


def rows_of_extensions(connection: Connection) -> dict[str, str]:
    """Tables of extensions with rows that are the user's, as the extension itself counts them, and why they are left out."""
    found = {}
    for extension, quoted, schema, name, condition in rows(connection, _EXTENSION_ROWS):
        if rows(connection, f"SELECT FROM {quoted} {condition} LIMIT 1"):
            found[display_name(schema, name)] = f"its rows belong to extension {extension}: keep them by what it offers"
    return found


def _table(row: tuple[Any, ...], attributes: list[tuple[Any, ...]], keys: tuple[Key, ...], types: _Types) -> Table:
    oid, schema, name, kind, tablespace, leaves, method, partition_key, partitions, _ = row
    columns = tuple(
        TableColumn(
            number=a[1], name=a[2], type=a[3], type_oid=a[4], base=types.base_name(a[4]), not_null=a[5],
            generated=bool(a[6]), identity=a[7], default=a[12],
            plain_type=plain.full_name if (plain := types.plain(a[4])) else a[3], equals=plain.equals if plain else "=",
            composed=a[3].endswith("[]") or (plain is not None and plain.kind == "c"),
        )
        for a in attributes
        if not a[8]
    )  # fmt: skip
    reachable = types.reachable(column.type_oid for column in columns)
    shape = json.dumps([oid, schema, name, kind, leaves, partition_key, [a[1:] for a in attributes]], default=str)
    digest = hashlib.sha256(shape.encode())
    for type_oid in sorted(reachable):
        # Built-in types never change; leaving them out keeps the digest the same over minor releases.
        if type_oid >= FIRST_USER_OID:
            digest.update(reachable[type_oid].text.encode())
    return Table(
        oid=oid,
        schema=schema,
        name=name,
        partitioned=kind == "p",
        columns=columns,
        keys=keys,
        heap=method == "heap" if kind == "r" else all(leaf[1] == "r" and leaf[2] == "heap" for leaf in leaves),
        shape=digest.hexdigest(),
        names_objects=any(t.name in NAMED_BY_REFERENCE and t.schema == "pg_catalog" for t in reachable.values()),
        tablespaces=(tablespace,) if tablespace else (),
        foreign=any(leaf[1] == "f" for leaf in leaves),
        partitions=tuple((each[0], each[1], each[2]) for each in partitions),
    )
