"""What the operations of this app do; imported when a kind of operation is first looked up."""

from tenants.handlers import backup, catalogue, delete, drill, export, plan, prune, reconcile, restore, verify

__all__ = ["backup", "catalogue", "delete", "drill", "export", "plan", "prune", "reconcile", "restore", "verify"]
