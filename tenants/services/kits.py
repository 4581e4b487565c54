"""The recovery kit: what a clean host needs, besides a store, to read everything."""

from audit.services import record
from core.rootkey import root_key
from engine.keys import Keyring
from engine.kit import kit_export
from tenants.models import Tenant


def kit_make(passphrase: str, *, actor: str) -> bytes:
    """The kit as a file's content: the root key under the passphrase, and all repositories' public keys."""
    root = root_key()
    rows = []
    for tenant in Tenant.objects.order_by("slug").iterator():
        keyring = Keyring.from_bytes(bytes(tenant.keyring), root)
        rows.append(
            {
                "repository_id": tenant.repository_id,
                "tenant_id": tenant.pk,
                "tenant_name": tenant.name,
                "public_key": keyring.public_key.hex(),
            }
        )
    kit = kit_export(root, passphrase, rows)
    record("kit.exported", message=f"recovery kit for {len(rows)} repositories", actor=actor, level="warning")
    return kit
