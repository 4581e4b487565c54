"""The counters: read with the changes since they were folded, folded, counted anew, compared with the rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from django.apps import AppConfig
from django.db import connection, transaction

from audit.services import record
from tenants.figures import triggers
from tenants.models import Figure, FigureChange

FOLD_ROWS = 50_000
CHANGES_MAX = 10_000
"""Changes that a look adds up each time; the worker folds them every minute, and a look that finds more does."""

KEPT = True
"""Whether the triggers are put in place after a migration. Tests that empty all tables turn it off: emptying counts, too."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The sums of one subject."""

    total: int = 0
    success: int = 0
    failed: int = 0
    duration_ms: int = 0
    size_bytes: int = 0


_NAMES = tuple(asdict(Counts()))


def counts_get(subject: str) -> Counts:
    """The sums as they are now, exactly: what was folded, and the changes since."""
    # One statement, one snapshot: a fold in between would be counted twice or not at all.
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(f'sum({name})' for name in _NAMES)} FROM ("  # noqa: S608 - constants
            f"SELECT {triggers.COLUMNS} FROM tenants_figure WHERE subject = %s UNION ALL "
            f"SELECT {triggers.COLUMNS} FROM tenants_figurechange WHERE subject = %s) AS kept",
            [subject, subject],
        )
        found = cursor.fetchone()
    return Counts(*(int(value or 0) for value in found))


def changes_fold() -> int:
    """Add the changes to the sums; how many there were. Two at a time take turns."""
    folded = 0
    while True:
        with transaction.atomic():
            _locked()
            newest = FigureChange.objects.order_by("pk").values_list("pk", flat=True)[FOLD_ROWS - 1 : FOLD_ROWS].first()
            rows, sums = _taken(newest)
            for subject, *values in sums:
                row = Figure.objects.get(pk=subject)
                for name, value in zip(_NAMES, values, strict=True):
                    setattr(row, name, getattr(row, name) + int(value))
                row.save()
            folded += rows
        if newest is None:
            return folded


def _taken(newest: int | None) -> tuple[int, list[tuple[Any, ...]]]:
    """Delete the changes up to this one and give their sums: exactly of those that were deleted.

    In PostgreSQL by one statement, since a change with a smaller number may commit while we look; a writer of SQLite is
    alone.
    """
    sums = f"count(*), {', '.join(f'sum({name})' for name in _NAMES)}"
    where = "" if newest is None else f"WHERE id <= {int(newest)}"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                f"WITH gone AS (DELETE FROM tenants_figurechange {where} RETURNING *) "  # noqa: S608 - constants
                f"SELECT subject, {sums} FROM gone GROUP BY subject"
            )
            found = cursor.fetchall()
        else:
            cursor.execute(f"SELECT subject, {sums} FROM tenants_figurechange {where} GROUP BY subject")  # noqa: S608 - constants
            found = cursor.fetchall()
            cursor.execute(f"DELETE FROM tenants_figurechange {where}")  # noqa: S608 - constants
    return sum(row[1] for row in found), [(row[0], *row[2:]) for row in found]


def counts_rebuild(*, actor: str = "") -> dict[str, Counts]:
    """Count all rows again and put that in the place of the sums; with an `actor` on record."""
    with _snapshot():
        _locked()
        found = {each.subject: counted(each) for each in triggers.COUNTED}
        # Changes that commit meanwhile are not in the snapshot, neither for the counting nor for this.
        FigureChange.objects.all().delete()
        for subject, counts in found.items():
            Figure.objects.filter(pk=subject).update(**asdict(counts))
    if actor:
        data = {subject: asdict(counts) for subject, counts in found.items()}
        record("figures.rebuilt", message="the figures of the overview were counted anew", actor=actor, data=data)
    return found


def counts_check() -> dict[str, tuple[Counts, Counts]]:
    """Subjects whose sums are not what their rows give: what is kept, and what was counted."""
    with _snapshot():
        found = {each.subject: (counts_get(each.subject), counted(each)) for each in triggers.COUNTED}
    return {subject: (kept, right) for subject, (kept, right) in found.items() if kept != right}


@contextmanager
def _snapshot() -> Iterator[None]:
    """One transaction that sees one moment of the catalogue throughout."""
    alone = not connection.in_atomic_block
    with transaction.atomic():
        if alone and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield


def counted(each: triggers.Counted) -> Counts:
    """Count the rows themselves: exact, and as slow as there are many."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT sum(a), sum(b), sum(c), sum(d), sum(e) FROM (SELECT {_named(each)} FROM {each.table} AS each) AS counted"  # noqa: S608 - constants
        )
        return Counts(*(int(value or 0) for value in cursor.fetchone()))


def _named(each: triggers.Counted) -> str:
    good, bad = (", ".join(f"'{name}'" for name in states) for states in (each.success, each.failed))
    is_good = f"CASE WHEN each.state IN ({good}) THEN {{}} ELSE 0 END"
    return (
        f"1 AS a, {is_good.format(1)} AS b, CASE WHEN each.state IN ({bad}) THEN 1 ELSE 0 END AS c, "
        f"{is_good.format('each.duration_ms')} AS d, {is_good.format(each.size.format(row='each'))} AS e"
    )


def _locked() -> None:
    Figure.objects.bulk_create((Figure(pk=each.subject) for each in triggers.COUNTED), ignore_conflicts=True)
    list(Figure.objects.select_for_update().order_by("pk"))


def triggers_keep(sender: AppConfig, **_: object) -> None:
    """After a migration: put the triggers in place where they are missing, and count what they have not seen."""
    if not KEPT or "tenants_figurechange" not in connection.introspection.table_names():
        return
    if not triggers.installed(connection):
        with transaction.atomic():
            triggers.install(connection)
            counts_rebuild()
