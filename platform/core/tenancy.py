"""What only a layer above knows of tenants, for those below it: it registers itself here when it starts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from core.errors import NotFound


class Tenancy(Protocol):
    """The layer that knows tenants."""

    def known(self, slugs: Sequence[str]) -> Mapping[str, bool]:
        """Those of the slugs that are tenants', and whether each is still there (not removed)."""
        ...

    def stores(self, slugs: Sequence[str]) -> Mapping[str, str]:
        """The name of the store that each of these tenants is backed up to."""
        ...

    def seal(self, slug: str, context: str, document: Mapping[str, Any]) -> bytes:
        """Seal a JSON document under the tenant's key. Raises NotFound, WrongKey for a key that is gone."""
        ...

    def open(self, slug: str, context: str, blob: bytes) -> Any:
        """Open what `seal` gave. Raises as it does, and ObjectDamaged."""
        ...


_registered: list[Tenancy] = []


def tenants_known_by(tenancy: Tenancy | None) -> None:
    """Ask this one from now on; None where no layer above knows tenants."""
    _registered[:] = [tenancy] if tenancy is not None else []


def tenancy_get() -> Tenancy | None:
    """The layer that knows tenants, if there is one."""
    return _registered[0] if _registered else None


def tenants_unknown(slugs: Sequence[str]) -> list[str]:
    """The slugs that are no tenant's, or a removed one's; none where no layer above knows tenants."""
    if not (slugs and _registered):
        return []
    found = _registered[0].known(slugs)
    return [slug for slug in slugs if not found.get(slug)]


def tenant_checked(slug: str) -> None:
    """Raise NotFound when there never was such a tenant; an empty slug and a removed tenant pass."""
    if slug and _registered and slug not in _registered[0].known([slug]):
        raise NotFound(f"there is no tenant {slug[:60]!r}", hint="tenant list shows them")


def tenant_store(slug: str) -> str:
    """The name of the store that the tenant is backed up to; empty for none, and where no layer above knows tenants."""
    return _registered[0].stores([slug]).get(slug, "") if slug and _registered else ""
