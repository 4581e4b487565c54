"""The kinds of work, registered by the apps that know them.

An app registers in its `handlers` module, imported when a kind is first looked up; or that is a package whose MODULES tell in
which of its modules each kind registers, and only that one is imported. Commands do not pay for what they do not run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from django.apps import apps
from django.utils.module_loading import module_has_submodule

from engine.errors import UsageError
from operations.context import OperationContext
from operations.models import Operation

Run = Callable[[OperationContext], Mapping[str, Any] | None]


def _nothing(operation: Operation) -> None:
    pass


def _same(operation: Operation) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Handler:
    """How one kind of operation runs and what else ends with it.

    `run` does the work and returns its result (JSON); it may be called in any process, and twice for two
    operations that are retries of each other. `on_lost` is called in the transaction that marks a running
    operation lost, `on_dropped` in the one that ends a queued operation which never ran (cancelled, refused,
    its process died): both settle the rows that wait for it and touch the catalogue only. `on_retry` is called
    in the transaction of a retry and returns the fields of the new operation that differ (`subject_id`,
    `params`).
    """

    kind: str
    run: Run
    resource: Callable[[Operation], str]
    phases: tuple[str, ...]
    cancellable: bool
    on_lost: Callable[[Operation], None]
    on_dropped: Callable[[Operation], None]
    on_retry: Callable[[Operation], Mapping[str, Any]]
    hooks: bool
    """Operators may put hooks around it (operations.hooks)."""


_handlers: dict[str, Handler] = {}


def register(
    kind: str,
    *,
    resource: Callable[[Operation], str] = lambda operation: "",
    phases: Sequence[str] = (),
    cancellable: bool = True,
    on_lost: Callable[[Operation], None] = _nothing,
    on_dropped: Callable[[Operation], None] = _nothing,
    on_retry: Callable[[Operation], Mapping[str, Any]] = _same,
    hooks: bool = False,
) -> Callable[[Run], Run]:
    """Register the decorated function as what runs operations of this kind; the kind must be new."""

    def decorate(run: Run) -> Run:
        assert kind not in _handlers, f"operation kind {kind} registered twice"
        _handlers[kind] = Handler(kind, run, resource, tuple(phases), cancellable, on_lost, on_dropped, on_retry, hooks)
        return run

    return decorate


def handler_get(kind: str) -> Handler:
    """Raise UsageError naming the known kinds when this one is unknown."""
    if kind not in _handlers:
        _load(kind)
    try:
        return _handlers[kind]
    except KeyError:
        known = ", ".join(kinds()) or "none"
        raise UsageError(f"unknown kind of operation {kind!r}", hint=f"known: {known}") from None


def kinds() -> list[str]:
    """All kinds of operations."""
    handlers_load()
    return sorted(_handlers)


def hooked_kinds() -> list[str]:
    """Kinds of operations around which hooks may run."""
    handlers_load()
    return sorted(kind for kind, handler in _handlers.items() if handler.hooks)


def handlers_load() -> None:
    """Import every module that registers a kind."""
    for package, modules in _listed():
        for module in dict.fromkeys(modules.values()):
            import_module(f"{package}.{module}")


def _load(kind: str) -> None:
    for package, modules in _listed():
        if kind in modules:
            import_module(f"{package}.{modules[kind]}")


def _listed() -> Iterator[tuple[str, Mapping[str, str]]]:
    """The apps' `handlers`, imported, and what those that are packages list."""
    for app in apps.get_app_configs():
        # Django's own apps have modules of that name that are something else, and load its whole request handling.
        if not app.name.startswith("django") and module_has_submodule(app.module, "handlers"):
            package = import_module(f"{app.name}.handlers")
            yield package.__name__, getattr(package, "MODULES", {})
