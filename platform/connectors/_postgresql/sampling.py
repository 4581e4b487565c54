"""Rows that show what a restore would do: a few of each table, the more telling first."""

from typing import Any

from connectors._postgresql.connection import Connection, rows
from connectors._postgresql.difference import Difference
from connectors._postgresql.digesting import key_order
from connectors._postgresql.quoting import ident
from connectors._postgresql.staging import Pair
from engine.plans import SAMPLE_VALUE_CHARACTERS, RowSample, SampleChange

_RANK = (
    "CASE WHEN side = 'x' AND what <> 'collisions' THEN 0 WHEN what = 'collisions' THEN 1 WHEN what = 'withheld' THEN 5"
    " WHEN what = 'stays' THEN 6 WHEN what = 'kept' THEN 7 WHEN change = 'D' THEN 2 WHEN change = 'U' THEN 3 ELSE 4 END"
)
_NAMES: tuple[SampleChange, ...] = (
    "conflict", "collision", "delete", "update", "insert", "withheld", "stays", "kept",
)  # fmt: skip


def take_samples(connection: Connection, difference: Difference, *, limit: int, sided: bool) -> tuple[RowSample, ...]:
    """At most `limit` rows of the table that differ; inside the transaction that planned."""
    if limit <= 0 or not (difference.any or difference.left):
        return ()
    pair = difference.pair
    found = rows(connection, _query(pair, limit, sided=sided))
    return tuple(_sample(pair, row) for row in found)


def _query(pair: Pair, limit: int, *, sided: bool) -> str:
    keys = [f"k{n}" for n in range(len(pair.key.columns) if pair.key is not None else 2)]
    names = ", ".join(["change", *keys, *(() if pair.key is not None else ("relation", "place"))])
    side = "side" if sided else "''"
    both = (
        f"SELECT {names}, {side} AS side, '' AS what, '' AS because FROM {pair.diff}"
        f" UNION ALL SELECT {names}, {side}, what, because FROM {pair.left}"
    )
    order = key_order(pair, "d", numbered=True) if pair.key is not None else "d.k0, d.k1"
    picked = f"SELECT d.*, {_RANK} AS rank FROM ({both}) AS d ORDER BY rank, {order} LIMIT {limit}"
    live = pair.on_stage("t") if pair.key is not None else "t.ctid = d.place AND t.tableoid = d.relation"
    text = "ARRAY[{}]::text[]".format
    key = text(", ".join(f"left(concat(d.{each}), {SAMPLE_VALUE_CHARACTERS})" for each in keys))
    before = text(", ".join(_cut("t", name) for name in pair.plain))
    after = text(", ".join(_cut("s", name) for name in pair.columns))
    differs = ", ".join(f"ROW(t.{ident(n)})::record *<> ROW(s.{ident(n)})::record" for n in pair.columns)
    return (
        f"SELECT d.rank, d.change, d.because, {key}, {before}, {after}, ARRAY[{differs}]::bool[] FROM ({picked}) AS d"
        f" LEFT JOIN {pair.table.source} AS t ON d.change <> 'I' AND {live}"
        f" LEFT JOIN {pair.stage} AS s ON d.change <> 'D' AND {pair.on_stage('s')} ORDER BY d.rank, {order}"
    )


def _cut(alias: str, name: str) -> str:
    column = f"{alias}.{ident(name)}"
    return f"CASE WHEN {column} IS DISTINCT FROM NULL THEN left(concat({column}), {SAMPLE_VALUE_CHARACTERS}) END"


def _sample(pair: Pair, row: tuple[Any, ...]) -> RowSample:
    rank, change, because, key, before, after, differs = row
    names = pair.key.columns if pair.key is not None else ()
    return RowSample(
        change=_NAMES[rank],
        key=dict(zip(names, key, strict=False)),
        before=dict(zip(pair.plain, before, strict=True)) if change != "I" else None,
        after=dict(zip(pair.columns, after, strict=True)) if change != "D" else None,
        fields=tuple(n for n, differ in zip(pair.columns, differs, strict=True) if differ) if change == "U" else (),
        because=because,
    )
