"""Whether the target holds exactly what was decided, read back before the commit."""

from collections.abc import Sequence

from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.connection import Connection, value
from connectors._postgresql.difference import Difference, remaining
from connectors._postgresql.part import read_lines
from connectors._postgresql.planning import Planned
from connectors._postgresql.quoting import ident
from connectors._postgresql.reader import is_utf8
from connectors._postgresql.rowtext import RowText
from connectors._postgresql.staging import Pair, same_text
from engine.errors import TargetError
from engine.ports import Check
from engine.table_runs import table_digest


def check_outcome(connection: Connection, planned: Planned) -> Check:
    """The digest of each table that is the backup's now; row by row where only a part of it is, or its columns changed."""
    expected, actual, details = {}, {}, []
    for difference in planned.differences:
        pair, change = difference.pair, difference.change
        name = pair.view.name
        wanted = getattr(pair.view, "sha256", "") if planned.whole and not difference.left else ""
        if wanted and same_text(pair):
            expected[name] = wanted
            actual[name] = _digest(connection, pair)
        elif planned.whole:
            details.append(f"{name}: compared row by row")
            expected[name] = actual[name] = f"{pair.view.row_count} rows"
        else:
            expected[name] = actual[name] = f"{change.insert + change.update + change.delete} rows changed"
            _check_changes(connection, difference)
        if pair.straight and expected[name] != actual[name]:
            raise ConcurrentChange(f"{pair.table.display} does not hold the backup's rows after the restore")
        if planned.whole and (expected[name] != actual[name] or not wanted or not same_text(pair)):
            rest = remaining(connection, pair)
            if rest != difference.left:
                raise ConcurrentChange(f"{pair.table.display}: {rest - difference.left} rows differ after the restore")
    wrong = sorted(name for name in expected if expected[name] != actual[name])
    if wrong:
        raise TargetError(
            f"after the restore {', '.join(wrong)} do not have the backup's digest",
            hint="nothing was changed; verify the backup, and look for triggers that rewrite rows",
        )
    return Check("checksum_verification", True, expected, actual, "; ".join(details))


def _check_changes(connection: Connection, difference: Difference) -> None:
    """Every row that was to change is what was decided."""
    pair = difference.pair
    if pair.key is None:
        wrong = _wrong_without_key(connection, pair) if difference.change.insert and pair.columns else 0
    else:
        left, right = (", ".join(f"{side}.{ident(name)}" for name in pair.columns) for side in "ts")
        query = (
            f"SELECT count(*) FROM {pair.diff} AS d LEFT JOIN {pair.table.source} AS t ON {pair.on_diff('t')}"
            f" LEFT JOIN {pair.stage} AS s ON d.change <> 'D' AND {pair.on_diff('s')}"
            f" WHERE CASE WHEN d.change = 'D' THEN t.tableoid IS NOT NULL"
            f" ELSE t.tableoid IS NULL OR ROW({left})::record *<> ROW({right})::record END"
        )
        wrong = int(value(connection, query)) if difference.any else 0
    if wrong:
        raise TargetError(
            f"{pair.table.display}: {wrong} rows are not what was decided",
            hint="nothing was changed; look for triggers and rules that rewrite rows",
        )


def _wrong_without_key(connection: Connection, pair: Pair) -> int:
    """Rows were inserted and came out otherwise; what was deleted was counted one by one."""
    made = f"SELECT {pair.text.hash_of_row()} AS mark, count(*) AS n FROM {pair.made} AS t GROUP BY 1"
    wanted = f"SELECT d.k0 AS mark, count(*) AS n FROM {pair.diff} AS d WHERE d.change = 'I' GROUP BY 1"
    return int(
        value(
            connection,
            f"SELECT count(*) FROM ({made}) AS a FULL JOIN ({wanted}) AS b ON a.mark = b.mark WHERE a.n IS DISTINCT FROM b.n",
        )
    )


def _digest(connection: Connection, pair: Pair) -> str:
    columns = tuple(pair.table.column(column.name) for column in pair.view.columns)
    text = RowText(pair.table, columns, pair.view.key, is_utf8(connection))
    query = text.select(pair.scope, version=False, leading=False)
    return table_digest(read_lines(connection, query), pair.view.key)[0]


def schema_check(pairs: Sequence[Pair]) -> Check:
    """Columns then and now."""
    expected = {pair.view.name: [column.name for column in pair.view.columns] for pair in pairs}
    actual = {pair.view.name: [*pair.columns, *pair.added] for pair in pairs}
    drift = [pair for pair in pairs if pair.removed or pair.added]
    detail = "; ".join(
        f"{p.view.name}: removed {', '.join(p.removed) or 'none'}, added {', '.join(p.added) or 'none'}" for p in drift
    )
    return Check("schema_compatibility", True, expected, actual, detail)
