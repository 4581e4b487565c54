"""The app of the audit log: the layer below tells it what was refused."""

from typing import TYPE_CHECKING

from django.apps import AppConfig

if TYPE_CHECKING:
    import argparse

    from engine.errors import LastroError


class AuditConfig(AppConfig):
    name = "audit"
    label = "audit"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Take in refusals of commands; imported when there is one."""
        from core.cli import refusals_told_to

        def refused(command: str, options: "argparse.Namespace", error: "LastroError") -> None:
            from audit.refusals import command_refused

            command_refused(command, options, error)

        refusals_told_to(refused)
