"""Mark a place in a bucket or container as a store's, once, and never one that holds anything else."""

from collections.abc import Callable, Iterable

from engine.errors import ObjectExists, StoreError

MARKER = ".lastro-store"
MARKER_TEXT = b'{"format": "lastro-store", "version": 1}\n'
OWN_FOLDERS = ("r/", "probe/", "catalogue/")
LOOK_AT_MAX = 20


def mark_place(
    place: str, *, is_marked: Callable[[], bool], names: Callable[[], Iterable[str]], mark: Callable[[], None]
) -> None:
    """Write the marker unless it is there. `names` gives the first keys there, from the prefix on.

    Raises StoreError when the place holds anything else, so that nothing of anybody's is mixed up.
    """
    if is_marked():
        return
    for name in names():
        if not name.startswith(OWN_FOLDERS):
            raise StoreError(
                f"{place} holds something else, for example {name[:80]}",
                hint="give the store a folder of its own: --set prefix=lastro",
            )
    try:
        mark()
    except ObjectExists:  # Another process has just made the same store.
        pass
