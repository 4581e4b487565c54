"""What the operations of this app do; imported when a kind of operation is first looked up."""

from tenants.handlers import backup, delete, export, prune, restore, verify

__all__ = ["backup", "delete", "export", "prune", "restore", "verify"]
