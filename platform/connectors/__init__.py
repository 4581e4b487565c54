"""One file per kind of source; importing this package imports no SDK and registers nothing."""

from engine.adapters import Registry
from engine.ports import Connector

registry: Registry[Connector] = Registry("source")


def load(kind: str) -> type[Connector]:
    """The adapter of a kind, importing no other where its file bears the kind's name. Raises UsageError."""
    import importlib
    import pkgutil

    if any(module.name == kind and not kind.startswith("_") for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"connectors.{kind}")
        if any(adapter.kind == kind for adapter in registry):
            return registry.get(kind)
    return load_all().get(kind)


def load_all() -> Registry[Connector]:
    """Import every adapter of this package, so that the registry knows it."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"connectors.{module.name}")
    return registry
