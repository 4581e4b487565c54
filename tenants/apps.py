"""The app of tenants: what the layers below have to be told by it."""

from collections.abc import Sequence

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"
    label = "tenants"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Tell the layers below what only this one knows."""
        from access.tenancy import tenants_known_by

        tenants_known_by(_unknown)


def _unknown(slugs: Sequence[str]) -> list[str]:
    from tenants.models import Tenant

    known = set(Tenant.objects.filter(slug__in=slugs, archived_at=None).values_list("slug", flat=True))
    return [slug for slug in slugs if slug not in known]
