"""The rows a restore will change, as they are: locked, kept for the undo, and digested with what they become."""

import contextlib
from collections.abc import Sequence

from connectors._postgresql.catalogue import key_kind
from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.connection import Connection, run
from connectors._postgresql.difference import Difference
from connectors._postgresql.part import read_lines
from connectors._postgresql.quoting import ident, idents
from connectors._postgresql.rowtext import RANGED_KINDS
from connectors._postgresql.staging import Pair
from engine.plans import ChangeDigest
from engine.progress import Progress


def keep_before(connection: Connection, difference: Difference, *, hold: bool) -> None:
    """Copy the live rows that will be updated or deleted, locked against others when `hold`.

    Raises ConcurrentChange when one of them is no longer what was compared.
    """
    pair, change = difference.pair, difference.change
    if pair.straight:
        return
    columns = idents(pair.plain, of="t")
    query = (
        f"CREATE TEMPORARY TABLE {pair.before} ON COMMIT DROP AS SELECT {columns} FROM {pair.table.source} AS t"
        f" JOIN {pair.diff} AS d ON {pair.same_row()} WHERE d.change IN ('U', 'D')"
    )
    wanted = change.update + change.delete
    if not wanted:
        run(
            connection,
            f"CREATE TEMPORARY TABLE {pair.before} ON COMMIT DROP AS SELECT {columns} FROM {pair.table.source} AS t WITH NO DATA",
        )
        return
    found = run(connection, query + (" FOR UPDATE OF t" if hold else "")).rowcount
    if found != wanted:
        raise ConcurrentChange(f"{pair.table.display}: {wanted - found} rows changed meanwhile")
    run(connection, f"ANALYZE {pair.before}")


def key_order(pair: Pair, alias: str, *, numbered: bool = False) -> str:
    """ORDER BY terms that put rows into the same order on every run, whatever the database's collation.

    `numbered`: the alias offers the key's columns as k0, k1 …, as diff tables do.
    """
    assert pair.key is not None, "only rows with a key have its order"
    terms = []
    for n, name in enumerate(pair.key.columns):
        quoted = f"{alias}.{f'k{n}' if numbered else ident(name)}"
        ranged = key_kind(pair.table.column(name)) in RANGED_KINDS
        terms.append(quoted if ranged else f'concat({quoted}) COLLATE "C"')
    return ", ".join(terms)


def take_digest(connection: Connection, differences: Sequence[Difference], progress: Progress) -> str:
    """engine.plans.ChangeDigest over every change: deletions, updates, insertions, each in key order.

    What a row becomes is the backup's row of its key: the backup's digest of the table and the key stand for it, where the
    table has a digest. Where every row of the backup is inserted, and nothing else done, all keys are one line.
    """
    digest = ChangeDigest()
    for difference in differences:
        if not difference.any:
            continue
        pair = difference.pair
        types = (pair.table.column(name).type for name in pair.columns)
        digest.section(pair.view.name, (*pair.plain, "", *pair.columns, "", *types, pair.view.sha256 or ""))
        if _is_all(difference):
            digest.lines([b"all"])
            continue
        for query in _queries(difference):
            with contextlib.closing(read_lines(connection, query)) as batches:
                for lines in batches:
                    digest.lines(lines)
                    progress.check()
    return digest.hexdigest()


def _is_all(difference: Difference) -> bool:
    """Whether the backup's whole table comes back and nothing of the target's goes."""
    pair, change = difference.pair, difference.change
    return bool(pair.view.sha256) and (change.insert, change.update, change.delete) == (pair.view.row_count, 0, 0)


def _queries(difference: Difference) -> list[str]:
    pair, change = difference.pair, difference.change
    was = f"ROW({idents(pair.plain, of='b')})::text"
    queries = []
    if pair.key is None:
        # The made-up key holds the digest of the whole row.
        if change.delete:
            queries.append(f"SELECT 'D', {was} COLLATE \"C\" AS text FROM {pair.before} AS b ORDER BY text")
        if change.insert:
            queries.append(f"SELECT 'I', d.k0, d.k1 FROM {pair.diff} AS d WHERE d.change = 'I' ORDER BY d.k0, d.k1")
        return queries
    before = f"{pair.before} AS b JOIN {pair.diff} AS d ON {pair.on_diff('b')}"
    if change.delete:
        queries.append(f"SELECT 'D', {was} FROM {before} WHERE d.change = 'D' ORDER BY {key_order(pair, 'b')}")
    if pair.view.sha256:
        keys = ", ".join(f"d.k{n}" for n in range(len(pair.key.columns)))
        order = key_order(pair, "d", numbered=True)
        update = f"SELECT 'U', {keys}, {was} FROM {before} WHERE d.change = 'U' ORDER BY {order}"
        insert = f"SELECT 'I', {keys} FROM {pair.diff} AS d WHERE d.change = 'I' ORDER BY {order}"
    else:
        becomes = f"ROW({idents(pair.columns, of='s')})::text"
        staged = f"JOIN {pair.stage} AS s ON {pair.on_diff('s')}"
        update = (
            f"SELECT 'U', {was}, {becomes} FROM {before} {staged} WHERE d.change = 'U' ORDER BY {key_order(pair, 'b')}"
        )
        insert = (
            f"SELECT 'I', {becomes} FROM {pair.diff} AS d {staged} WHERE d.change = 'I' ORDER BY {key_order(pair, 's')}"
        )
    queries += [update] if change.update else []
    queries += [insert] if change.insert else []
    return queries
