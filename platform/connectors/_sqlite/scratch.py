"""Questions to a restored SQLite file that is thrown away afterwards."""

import contextlib
import sqlite3
import time
from urllib.parse import quote

from engine.errors import TargetError, UsageError

ANSWER_CHARACTERS_MAX = 64 << 10
_STEPS_PER_LOOK = 10_000
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def ask(path: str, question: str, *, seconds: int) -> str:
    """Run one statement that reads; rows as lines, fields joined by tabs, `\\N` for NULL.

    Raises UsageError for what is no such statement, TargetError when it takes too long.
    """
    deadline = time.monotonic() + seconds
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.set_authorizer(_only_reading)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_PER_LOOK)
        lines, size = [], 0
        try:
            for row in connection.execute(question):
                line = "\t".join("\\N" if value is None else str(value) for value in row)
                size += len(line) + 1
                if size > ANSWER_CHARACTERS_MAX:
                    raise UsageError("the answer is longer than 64 KiB", hint="ask for a count or a digest")
                lines.append(line)
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise TargetError(f"the question took longer than {seconds} s") from None
            raise UsageError(f"the question cannot be asked: {error}", hint="one SELECT in SQLite's SQL") from None
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise UsageError(f"the question cannot be asked: {error}", hint="one SELECT in SQLite's SQL") from None
    return "\n".join(lines)


def compiled(path: str, question: str) -> None:
    """See whether SQLite understands the question, without asking it. Raises UsageError."""
    ask(path, f"EXPLAIN {question}", seconds=1)


def _only_reading(action: int, *_about: str | None) -> int:
    """Neither ATTACH nor PRAGMA nor anything that writes."""
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
