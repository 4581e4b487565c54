"""The one way a state changes: a compare-and-swap update with its row of history."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import models, transaction

from core.errors import StateConflict
from core.models import StateChange

Allowed = Mapping[str, frozenset[str]]


def transition(
    instance: models.Model,
    *,
    to: str,
    allowed: Allowed,
    actor: str = "",
    reason: str = "",
    expected: Mapping[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Move the row from the state that `instance` holds to `to`, setting `fields` with it.

    The update matches id and old state and must touch one row: of two racing callers one wins, and the other
    gets StateConflict with nothing written. `expected` names more fields that must still have these values.
    Afterwards the instance is as the database has it. Called only from files named transitions.py.
    """
    model = type(instance)
    label = model._meta.model_name or model.__name__.lower()
    old = str(getattr(instance, "state"))  # noqa: B009 - models declare it, Model does not
    if to not in allowed.get(old, frozenset()):
        raise StateConflict(f"{label} {instance.pk} is {old} and cannot become {to}")
    with transaction.atomic():
        touched = model._base_manager.filter(pk=instance.pk, state=old, **(expected or {})).update(state=to, **fields)
        if touched != 1:
            raise StateConflict(
                f"{label} {instance.pk} is no longer {old}", hint="somebody else changed it; look at it again"
            )
        StateChange.objects.create(
            subject_type=label, subject_id=str(instance.pk), from_state=old, to_state=to, actor=actor, reason=reason
        )
        instance.refresh_from_db()


MANY_MAX = 500
"""Rows that `transition_many` takes in one statement; databases bound the parameters of one."""


def transition_many(
    model: type[models.Model],
    ids: Sequence[str],
    *,
    to: str,
    allowed: Allowed,
    actor: str = "",
    reason: str = "",
    expected: Mapping[str, Any] | None = None,
    **fields: Any,
) -> list[str]:
    """Move many rows at once, in the caller's transaction; the ids of those that were moved.

    A row that is in no state from which it may come to `to`, or that has no longer the `expected` values, is left as
    it is. Called only from files named transitions.py.
    """
    label = model._meta.model_name or model.__name__.lower()
    sources = [old for old, targets in allowed.items() if to in targets]
    moved: list[str] = []
    with transaction.atomic():
        for begin in range(0, len(ids), MANY_MAX):
            wanted = ids[begin : begin + MANY_MAX]
            rows = model._base_manager.filter(pk__in=wanted, state__in=sources, **(expected or {}))
            states = dict(rows.select_for_update().order_by("pk").values_list("pk", "state"))
            touched = rows.filter(pk__in=list(states)).update(state=to, **fields)
            if touched != len(states):
                raise StateConflict(f"some {label}s changed while they were moved", hint="try again")
            StateChange.objects.bulk_create(
                StateChange(subject_type=label, subject_id=pk, from_state=old, to_state=to, actor=actor, reason=reason)
                for pk, old in states.items()
            )
            moved += states
    return moved
