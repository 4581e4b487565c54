"""What the operations of this app do; imported when a kind of operation is first looked up."""

from tenants.handlers import backup, delete, drill, export, plan, prune, restore, verify

__all__ = ["backup", "delete", "drill", "export", "plan", "prune", "restore", "verify"]
