"""What changes in a store when the primary of a repository moves into it, or out of it.

A primary has no selections and its numbers are read as a chain; a copy has no tombstones (docs/formats/repository.md).
Whoever worked in either store before is fenced by the generation of its index: it deletes nothing any more.
"""

from contextlib import suppress

from engine.errors import StoreDenied
from engine.repository import Domain, Repository, delete_all


def domains_used(repository: Repository) -> list[Domain]:
    """The domains in which anything lies; most repositories have no plain one."""
    beside = next(iter(repository.store.list(repository.plain.prefix)), None)
    return [repository.sealed] if beside is None else [repository.sealed, repository.plain]


def writers_fence(repository: Repository, *, head: int) -> None:
    """Claim the next generation of each index: a prune that was stopped on its way drops nothing when it goes on."""
    for domain in domains_used(repository):
        domain.index.claim_generation(head=head)


def selections_drop(repository: Repository) -> None:
    """Take back what was promised as a copy: from now on the chain says what must be there."""
    _folder_drop(repository, f"{repository.prefix}selections/")


def tombstones_drop(repository: Repository) -> None:
    """Forget what a prune was to delete: in a copy packs go by what is promised."""
    for domain in (repository.sealed, repository.plain):
        _folder_drop(repository, f"{domain.prefix}tombstones/")


def _folder_drop(repository: Repository, prefix: str) -> None:
    with suppress(StoreDenied):  # A store that locks or only appends keeps them; they say nothing that is believed.
        delete_all(repository.store, [info.key for info in repository.store.list(prefix)])
