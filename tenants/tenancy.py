"""What the layers below are told about tenants (see core.tenancy)."""

from collections.abc import Mapping, Sequence
from typing import Any


class Tenants:
    """Answers from the catalogue; nothing heavy is imported before it is asked."""

    def known(self, slugs: Sequence[str]) -> dict[str, bool]:
        """Those of the slugs that are tenants', and whether each is still there (not removed)."""
        from tenants.models import Tenant

        rows = Tenant.objects.filter(slug__in=slugs).values_list("slug", "archived_at")
        return {slug: archived_at is None for slug, archived_at in rows}

    def stores(self, slugs: Sequence[str]) -> dict[str, str]:
        """The name of each tenant's store."""
        from tenants.models import Tenant

        return dict(Tenant.objects.filter(slug__in=slugs).values_list("slug", "store__name"))

    def seal(self, slug: str, context: str, document: Mapping[str, Any]) -> bytes:
        """Seal a document under the tenant's key."""
        from tenants.selectors import tenant_get
        from tenants.tenant_sealing import document_seal, keyring_of

        return document_seal(keyring_of(tenant_get(slug)), context, document)

    def open(self, slug: str, context: str, blob: bytes) -> Any:
        """Open what `seal` gave."""
        from tenants.selectors import tenant_get
        from tenants.tenant_sealing import document_open, keyring_of

        return document_open(keyring_of(tenant_get(slug)), context, blob)
