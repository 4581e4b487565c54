"""The app of tenants: what the layers below have to be told by it."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"
    label = "tenants"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Tell the layers below what only this one knows."""
        from core.tenancy import tenants_known_by
        from operations.schedules import standing_add
        from tenants.tenancy import Tenants

        tenants_known_by(Tenants())
        standing_add("lastro: keep the catalogue", "tenants.tasks.catalogue_scheduled", minutes=15)
        standing_add("lastro: bring copies up to date", "tenants.tasks.copies_scheduled", cron="30 1 * * *")
        standing_add("lastro: read stored bytes in turn", "tenants.tasks.samples_scheduled", cron="0 3 * * *")
        standing_add("lastro: look through stores", "tenants.tasks.structures_scheduled", cron="0 5 * * 6")
        standing_add("lastro: retention", "tenants.tasks.retention_scheduled", cron="0 4 * * *")
