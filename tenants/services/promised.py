"""What a copy that becomes the primary had promised to hold: what of it is gone was lost, and is no end (docs/adr/0014)."""

from engine.errors import ManifestDamaged
from engine.repository import Repository
from engine.selections import selection_read
from tenants.models import RepositoryMirror, Tenant
from tenants.owning import mirror_of


class Promised:
    """The promise as it was written down; anything may have been promised when nobody can say."""

    def __init__(self, said: dict[str, object] | None) -> None:
        self._ranges = None if said is None else said.get("numbers")

    def __contains__(self, number: int) -> bool:
        if not isinstance(self._ranges, list):
            return True
        return any(first <= number <= last for first, last in self._ranges)


def promise_keep(tenant: Tenant, repository: Repository) -> None:
    """Write down what the store had promised as a copy, before its selections are dropped. Repeating it changes nothing.

    A selection that is gone, altered, or signed by a key that had got out says nothing for certain.
    """
    said = dict(mirror_of(tenant).promised or {})
    if "numbers" in said or "unknown" in said:
        return
    try:
        selection = selection_read(repository, at_least=int(said.get("at_least", 0)))
        if not selection.serial:  # A clone of a primary: up to where it goes its numbers are a chain.
            said["numbers"] = [[1, repository.head()]]
        elif selection.trusted:
            said["numbers"] = _ranges(selection.kept)
        else:
            said["unknown"] = f"selection {selection.serial} is signed by a key that had got out"
    except ManifestDamaged as error:
        said["unknown"] = error.message
    RepositoryMirror.objects.filter(tenant=tenant).update(promised=said)


def promised(tenant: Tenant) -> Promised:
    """What was written down of the store that holds the tenant's repository now."""
    return Promised(mirror_of(tenant).promised)


def _ranges(numbers: frozenset[int]) -> list[list[int]]:
    stretches: list[list[int]] = []
    for number in sorted(numbers):
        if stretches and stretches[-1][1] == number - 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    return stretches
