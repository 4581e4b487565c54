"""The catalogue's memory is bounded: rows about what was done long ago leave it, in batches, on record.

What says how things went day by day (operations, runs of hooks, plans) stays LASTRO_HISTORY_DAYS; what proves that
restores would work or did work (drills, validations) LASTRO_EVIDENCE_DAYS. Backups and restores stay as long as
retention says; the audit log stays whole. Apps register their chapters in their `forgetting` module.
"""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils.module_loading import autodiscover_modules

from audit.services import record
from core import clock
from core.ids import first_id
from core.models import StateChange
from operations.models import (
    FINAL_STATES,
    Alert,
    AlertDelivery,
    AlertMessage,
    AlertState,
    HookRun,
    Operation,
    RuleVersion,
)

BATCH_ROWS = 500
"""Rows of one transaction: no lock is held long, and a kill loses no more."""
RUN_ROWS_MAX = 200_000
"""Of each chapter at one time; the rest goes the next day."""

Term = Literal["history", "evidence"]
Rows = Callable[[datetime.datetime], "QuerySet[Any]"]
"""The rows that were over before the given time."""


@dataclass(frozen=True)
class Chapter:
    """One kind of rows with its term."""

    noun: str
    term: Term
    rows: Rows


_chapters: dict[str, Chapter] = {}
_guards: list[Callable[[], None]] = []


def history_register(noun: str, *, term: Term) -> Callable[[Rows], Rows]:
    """Have rows of this kind forgotten after the term; the decorated function finds them."""

    def decorate(rows: Rows) -> Rows:
        _chapters[noun] = Chapter(noun, term, rows)
        return rows

    return decorate


def history_guarded_by(guard: Callable[[], None]) -> None:
    """Ask `guard` first, which raises when nothing may be deleted now (a clock that cannot be believed)."""
    if guard not in _guards:
        _guards.append(guard)


def history_forget(*, actor: str, dry_run: bool = False) -> dict[str, int]:
    """Delete what is past its term; how many rows of each kind. Raises what a guard raises.

    Repeating it, or two at a time, does no harm. One audit entry tells how much went, none when nothing did.
    """
    autodiscover_modules("forgetting")
    for guard in () if dry_run else tuple(_guards):
        guard()
    now = clock.now()
    gone = {name: _forget(each, _before(each.term, now), dry_run=dry_run) for name, each in sorted(_chapters.items())}
    if any(gone.values()) and not dry_run:
        told = ", ".join(f"{count} {noun}" for noun, count in gone.items() if count)
        terms: Mapping[str, int] = {"history": settings.LASTRO_HISTORY_DAYS, "evidence": settings.LASTRO_EVIDENCE_DAYS}
        record("history.forgotten", message=f"past their term: {told}", actor=actor, data={"rows": gone, "days": terms})
    return gone


def _before(term: Term, now: datetime.datetime) -> datetime.datetime:
    days = settings.LASTRO_HISTORY_DAYS if term == "history" else settings.LASTRO_EVIDENCE_DAYS
    return now - datetime.timedelta(days=days)


def _forget(chapter: Chapter, before: datetime.datetime, *, dry_run: bool) -> int:
    rows = chapter.rows(before)
    if dry_run:
        return rows.count()
    gone = 0
    while gone < RUN_ROWS_MAX:
        ids = list(rows.order_by("pk").values_list("pk", flat=True)[:BATCH_ROWS])
        if not ids:
            break
        with transaction.atomic():
            deleted = rows.filter(pk__in=ids).delete()[1].get(rows.model._meta.label, 0)
            left = rows.model._base_manager.filter(pk__in=ids).values_list("pk", flat=True)
            StateChange.objects.filter(subject_id__in=set(ids) - set(left)).delete()
        gone += deleted
        if not deleted:
            break  # Somebody else is at it, or what remains is needed again.
    return gone


@history_register("operations", term="history")
def _operations(before: datetime.datetime) -> "QuerySet[Operation]":
    return Operation.objects.filter(pk__lt=first_id("opr", before), state__in=FINAL_STATES, finished_at__lt=before)


@history_register("runs of hooks", term="history")
def _hook_runs(before: datetime.datetime) -> "QuerySet[HookRun]":
    return HookRun.objects.filter(pk__lt=first_id("hkr", before))


@history_register("alerts that are over", term="history")
def _alerts(before: datetime.datetime) -> "QuerySet[Alert]":
    return Alert.objects.filter(pk__lt=first_id("alt", before), state=AlertState.RESOLVED, resolved_at__lt=before)


@history_register("deliveries of messages", term="history")
def _deliveries(before: datetime.datetime) -> "QuerySet[AlertDelivery]":
    return AlertDelivery.objects.filter(pk__lt=first_id("dlv", before))


@history_register("messages", term="history")
def _messages(before: datetime.datetime) -> "QuerySet[AlertMessage]":
    return AlertMessage.objects.filter(pk__lt=first_id("msg", before))


@history_register("former versions of alert rules", term="evidence")
def _rule_versions(before: datetime.datetime) -> "QuerySet[RuleVersion]":
    return RuleVersion.objects.filter(current=False, superseded_at__lt=before)
