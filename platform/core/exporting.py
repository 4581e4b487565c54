"""Which rows are the catalogue: what its backups hold, and what an adoption brings back.

Each app names its models in a module `exports`, which is imported when the list is first asked for; so the list grows
downwards-only, like everything else. A model that no app has named is kept all the same, but for its binary columns:
losing rows would be worse than keeping too many, and keys are binary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db import models
from django.utils.module_loading import autodiscover_modules


@dataclass(frozen=True)
class Export:
    """How the rows of one model are kept. Fields in `without` are not, and come back as their default or `instead`."""

    label: str
    without: frozenset[str] = frozenset()
    instead: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> type[models.Model]:
        return apps.get_model(self.label)

    @property
    def columns(self) -> "list[models.Field[Any, Any]]":
        """The fields that are kept, by name."""
        kept = (each for each in self.model._meta.concrete_fields if each.name not in self.without)
        return sorted(kept, key=lambda each: each.attname)


_exports: dict[str, Export] = {}
_left_out: dict[str, str] = {}


def export(label: str, *, without: tuple[str, ...] = (), instead: Mapping[str, Any] | None = None) -> None:
    """Keep the rows of this model (`app.Model`) but for the fields in `without`; called by an app's `exports`."""
    _exports[label] = Export(label, frozenset(without), dict(instead or {}))


def leave_out(label: str, *, why: str) -> None:
    """Keep no row of this model; `why` is for people who read the list."""
    assert why, f"{label} is left out for no reason"
    _left_out[label] = why


def exports(ours: tuple[str, ...]) -> list[Export]:
    """Every model to be kept, in an order in which references point backwards; `ours` are the labels of our apps."""
    named = {**_named(), **{each.label: each for each in unnamed(ours)}}
    return [named[label] for label in _ordered(named)]


def unnamed(ours: tuple[str, ...]) -> list[Export]:
    """Models of our apps that nobody has named, each without its binary fields."""
    known = {*_named(), *_left_out}
    found = []
    for app in ours:
        for model in apps.get_app_config(app).get_models(include_auto_created=True):
            if model._meta.label not in known:
                binary = {each.name for each in model._meta.concrete_fields if isinstance(each, models.BinaryField)}
                found.append(Export(model._meta.label, frozenset(binary)))
    return found


def _named() -> dict[str, Export]:
    autodiscover_modules("exports")
    return _exports


def _ordered(named: Mapping[str, Export]) -> list[str]:
    """Depth first along foreign keys; circles are broken where they are met (constraints wait for the commit)."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(label: str) -> None:
        if label in seen or label not in named:
            return
        seen.add(label)
        for each in named[label].model._meta.concrete_fields:
            if each.related_model is not None:
                visit(each.related_model._meta.label)
        order.append(label)

    for label in sorted(named):
        visit(label)
    return order
