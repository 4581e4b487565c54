"""Folders on an SFTP server: what is in them, and the small requests around them."""

import datetime
import stat as stat_bits
from collections.abc import Iterator, Mapping

from engine.ports import ObjectInfo
from stores._keys import is_key_part
from stores._sftp import wire as sftp
from stores._sftp.wire import Attributes, Reply, Status, Wire, request

READS_AT_ONCE = 4
"""Requests for the next names of each folder that are in flight together; OpenSSH gives 100 names to one."""

Entry = tuple[str, Attributes]


def read_folders(wire: Wire, handles: Mapping[int, bytes]) -> dict[int, list[Entry]]:
    """Every entry of opened folders that can be an object or a folder of objects, a folder's name with a slash behind.

    That is how its children's keys sort. Dot names are the store's own.
    """
    found: dict[int, list[Entry]] = {number: [] for number in handles}
    unread = dict(handles)
    refused: Status | None = None
    while unread and refused is None:
        numbers = [number for number in unread for _ in range(READS_AT_ONCE)]
        answers = wire.ask(*(request(sftp.READDIR, unread[number]) for number in numbers))
        for number, answer in zip(numbers, answers, strict=True):
            if answer.status is None:
                found[number] += _entries(answer)
                continue
            unread.pop(number, None)
            if answer.status.code != sftp.EOF:
                refused = answer.status
    if refused is not None:
        raise refused
    return found


def _entries(answer: Reply) -> Iterator[Entry]:
    for raw, attributes in answer.names():
        name = raw.decode(errors="replace")
        if is_key_part(name):
            if stat_bits.S_ISDIR(attributes.mode):
                yield name + "/", attributes
            elif stat_bits.S_ISREG(attributes.mode):
                yield name, attributes


def name_of(entry: Entry) -> str:
    return entry[0]


def is_folder(wire: Wire, path: bytes) -> bool:
    (there,) = wire.ask(request(sftp.LSTAT, path))
    return there.status is None and stat_bits.S_ISDIR(there.attributes().mode)


def open_folder(path: bytes) -> bytes:
    """Open a folder as if it were a file: read(2) would refuse, but fsync(2) is all that is wanted."""
    return sftp.open_file(path, sftp.FOR_READING)


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"


def info_of(key: str, attributes: Attributes) -> ObjectInfo:
    modified = datetime.datetime.fromtimestamp(attributes.modified, datetime.UTC)
    return ObjectInfo(key=key, size=attributes.size, modified=modified)
