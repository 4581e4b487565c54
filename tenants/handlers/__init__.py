"""What the operations of this app do; imported when a kind of operation is first looked up."""

from tenants.handlers import (
    backup,
    catalogue,
    copies,
    copy_checks,
    delete,
    drill,
    export,
    forgetting,
    keys,
    plan,
    prune,
    reconcile,
    restore,
    retention,
    verify,
)

__all__ = [
    "backup",
    "catalogue",
    "copies",
    "copy_checks",
    "delete",
    "drill",
    "export",
    "forgetting",
    "keys",
    "plan",
    "prune",
    "reconcile",
    "restore",
    "retention",
    "verify",
]
