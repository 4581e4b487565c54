"""One file per kind of store, and the wrappers around any of them; importing this package imports no SDK."""

from typing import Any, ClassVar, Protocol

from engine.adapters import Registry
from engine.ports import Store


class StoreAdapter(Store, Protocol):
    """What the registry asks of a kind of store beyond storing. Constructing it opens it.

    A kind whose place has to be made first has a class method `make(config)` besides, called once, when a store is
    added; opening must not make anything, or backups would go on into an empty place when the real one is away.
    One with `remote = False` is not behind a network: what fails there once is not tried again, and nothing is read ahead.
    """

    label: ClassVar[str]
    Config: ClassVar[type]

    def __init__(self, config: Any) -> None:
        """Raises UsageError for settings that cannot be right, StoreError when the place cannot be used."""


registry: Registry[StoreAdapter] = Registry("store")


def load(kind: str) -> type[StoreAdapter]:
    """The adapter of a kind, importing no other where its file bears the kind's name. Raises UsageError."""
    import importlib
    import pkgutil

    if any(module.name == kind and not kind.startswith("_") for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"stores.{kind}")
        if any(adapter.kind == kind for adapter in registry):
            return registry.get(kind)
    return load_all().get(kind)


def load_all() -> Registry[StoreAdapter]:
    """Import every adapter of this package, so that the registry knows it."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"stores.{module.name}")
    return registry
