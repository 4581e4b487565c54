"""Tenants whose keys were destroyed."""

from core.errors import Conflict
from tenants.models import Tenant


class KeysDestroyed(Conflict):
    """The tenant was shredded: nothing of it can be read, nothing new be written."""

    code = "keys.destroyed"


def keys_present(tenant: Tenant) -> None:
    """Raise KeysDestroyed for a tenant that was shredded."""
    if tenant.shredded_at is not None:
        raise KeysDestroyed(
            f"the keys of tenant {tenant.slug} were destroyed on {tenant.shredded_at:%Y-%m-%d %H:%M} UTC: "
            "none of its backups can be read again, and none be taken",
            hint=f"what was destroyed: key certificate show {tenant.slug}",
        )
