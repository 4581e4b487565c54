"""Which tenants there are: known in a layer above, which registers itself here when it starts."""

from collections.abc import Callable, Sequence

Unknown = Callable[[Sequence[str]], Sequence[str]]
_registered: list[Unknown] = []


def tenants_known_by(unknown: Unknown) -> None:
    """Ask `unknown` from now on, which gives back those of the slugs that it does not know."""
    _registered[:] = [unknown]


def tenants_unknown(slugs: Sequence[str]) -> list[str]:
    """The slugs that are no tenant's; none where no layer above knows tenants."""
    return [slug for unknown in _registered for slug in unknown(slugs)] if slugs else []
