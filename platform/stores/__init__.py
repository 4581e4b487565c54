"""One file per kind of store, and the wrappers around any of them; importing this package imports no SDK and registers nothing."""

from engine.adapters import Registry
from engine.ports import Store

registry: Registry[Store] = Registry("store")


def load_all() -> Registry[Store]:
    """Import every adapter of this package, so that the registry knows it."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"stores.{module.name}")
    return registry
