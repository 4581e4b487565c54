"""The recovery kit: what a clean host needs, besides a store, to read everything."""

from audit.services import record
from core.rootkey import root_key, root_key_put
from engine.keys import Keyring
from engine.kit import kit_export, kit_open
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


def kit_take(kit: bytes, passphrase: str, *, actor: str) -> tuple[str, bool]:
    """Put the kit's root key in its place; its id, and False when it was there already.

    Raises WrongKey for another passphrase, ObjectDamaged, RootKeyMismatch for the kit of another installation.
    """
    root, _ = kit_open(kit, passphrase)
    put = root_key_put(root)
    record("kit.imported", message=f"root key {root.key_id} taken from a recovery kit", actor=actor, level="warning")
    return root.key_id, put
