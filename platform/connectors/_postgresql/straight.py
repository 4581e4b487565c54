"""Tables of which the source has no row left: the backup's rows go straight in, and there is nothing to compare.

Staging such a table, joining it with nothing and inserting what the join gave writes each row three times; COPY writes it
once, while the backup is still being read. Where later steps ask for staged or changed rows, the source's rows in the
target are both. Whatever does not go as expected (a key that somebody else has, a row that was written meanwhile, a rule
of the server's) ends the attempt, and the next one stages and compares.
"""

from collections.abc import Sequence

import psycopg

from connectors._postgresql.catalogue import ForeignKey
from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.connection import Connection, value
from connectors._postgresql.difference import Difference, referenced_columns
from connectors._postgresql.staging import Pair, same_text
from engine.errors import LastroError, TargetError, TargetFull, TargetUnreachable
from engine.ports import TableChange


class NotStraight(ConcurrentChange):
    """A table could not be loaded straight; the next attempt compares, and says what is wrong if anything is."""


def refused(error: Exception) -> bool:
    """Whether an attempt that loads straight may have failed where one that compares does not, or knows more to say."""
    if isinstance(error, psycopg.Error):
        return not isinstance(error, psycopg.OperationalError)
    if isinstance(error, LastroError):
        return isinstance(error, TargetError) and not isinstance(error, TargetFull | TargetUnreachable)
    return isinstance(error, ConcurrentChange)


def goes_straight(connection: Connection, pair: Pair) -> bool:
    """Whether the target prints the pair's rows as the backup does, can take all their columns, and holds none of them."""
    whole = bool(pair.columns) and len(pair.columns) == len(pair.view.columns)
    if not (whole and pair.view.sha256 and same_text(pair)):
        return False
    scope = pair.scope
    present = f"SELECT EXISTS (SELECT FROM {pair.table.source} AS t{scope.where})"
    return not value(connection, f"{scope.with_clause}{present}")


def everything(pair: Pair, links: Sequence[ForeignKey]) -> Difference:
    """The difference of a pair that goes straight: all of the backup's rows are inserted."""
    change = TableChange(pair.view.name, insert=pair.view.row_count)
    return Difference(pair, change, referenced_columns(pair, links))
