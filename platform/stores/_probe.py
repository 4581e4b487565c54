"""Find out whether a store keeps the promises that a repository rests on, before it is trusted."""

import secrets
from contextlib import suppress

from engine.errors import ObjectExists, ObjectMissing, StoreError
from engine.ports import Probe, Store

PROBE_FOLDER = "probe"


def probe_store(store: Store) -> Probe:
    """Write, read, list, refuse and delete one small object; raise StoreError where the store fails.

    The double create is the point: a store that accepts a second one with other bytes cannot tell two
    workers apart and may not be a primary.
    """
    key = f"{PROBE_FOLDER}/{secrets.token_hex(12)}"
    content = secrets.token_bytes(64)
    try:
        store.create(key, [content[:10], content[10:]])
        store.create(key, [content])
        try:
            store.create(key, [b"other"])
        except ObjectExists:
            pass
        else:
            raise StoreError("the store overwrote an object on a conditional create", hint="it cannot be a primary")
        if store.get(key) != content or store.get(key, 3, 7) != content[3:10]:
            raise StoreError("the store gave back other bytes than were written")
        if store.stat(key).size != len(content):
            raise StoreError("the store reports another size than was written")
        if [info.key for info in store.list(key)] != [key]:
            raise StoreError("the store does not list what was just written", hint="its listings lag behind")
    finally:
        with suppress(ObjectMissing):
            store.delete(key)
    return Probe(summary="the store writes, reads, lists, deletes and refuses double creates", details={})
