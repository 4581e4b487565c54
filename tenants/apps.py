"""The app of tenants: what the layers below have to be told by it."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class TenantsConfig(AppConfig):
    name = "tenants"
    label = "tenants"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Tell the layers below what only this one knows."""
        from audit.witness_kinds import witness_kind_add
        from core.tenancy import tenants_known_by
        from tenants.tenancy import Tenants

        tenants_known_by(Tenants())
        post_migrate.connect(_figures_kept, sender=self)
        witness_kind_add("store", "tenants.audit_witness.store_witness")


def _figures_kept(sender: AppConfig, **_: object) -> None:
    """No business step: SQLite drops a table's triggers when a migration alters it."""
    from tenants.figures.counting import triggers_keep

    triggers_keep(sender)
