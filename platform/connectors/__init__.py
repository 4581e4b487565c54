"""One file per kind of source; importing this package imports no SDK and registers nothing."""

from engine.adapters import Registry
from engine.ports import Connector

registry: Registry[Connector] = Registry("source")


def load_all() -> Registry[Connector]:
    """Import every adapter of this package, so that the registry knows it."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"connectors.{module.name}")
    return registry
