"""What of the tenants' rows the root key seals: settings with passwords in them, and the keyrings themselves."""

from typing import TYPE_CHECKING, Any

from core.rewrapping import SealedColumn, register, settings_rewrap
from tenants.models import Installation, KeyringPlace, KeyringState, Tenant

if TYPE_CHECKING:
    from engine.keys import RootKey


def _keyring(root: "RootKey", row: Tenant | Installation) -> bytes:
    from engine.keys import Keyring, keyring_root_id

    blob = bytes(row.keyring)
    if not blob or keyring_root_id(blob) == root.key_id:
        return blob
    return Keyring.from_bytes(blob, root).to_bytes(root)


def _places_pending(tenant: Any) -> None:
    """What lies in the stores is still the keyring as the old key wrapped it."""
    KeyringPlace.objects.filter(tenant=tenant).update(state=KeyringState.PENDING)


register(SealedColumn("keyrings of tenants", "tenants.Tenant", "keyring", _keyring, after=_places_pending))
register(SealedColumn("keyring of the catalogue's backups", "tenants.Installation", "keyring", _keyring))
register(SealedColumn("settings of stores", "tenants.StoreConfig", "sealed", settings_rewrap("store")))
register(SealedColumn("settings of sources", "tenants.Source", "sealed", settings_rewrap("source")))
register(SealedColumn("targets of restores", "tenants.Restore", "sealed", settings_rewrap("restore")))
register(SealedColumn("targets of plans", "tenants.RestorePlan", "sealed", settings_rewrap("restore")))
