"""Retention: which backups stay, by which rule, and when the others go. Pure: imports no Django (docs/retention.md)."""
