"""Databases without an encoding (SQL_ASCII): text is any bytes, and stays what it is.

There the client's encoding is SQL_ASCII too, so that the server neither converts nor checks. Rows pass through as bytes
like all others. What we have to read as text (catalogues, definitions) is taken for UTF-8, and bytes that are none become
lone surrogates as in names of files (PEP 383), which are turned back on the way to the server.
"""

import json
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader

from engine.errors import SourceUnsupported

ENCODING = "SQL_ASCII"
_TEXT_TYPES = ("text", "varchar", "bpchar", "name", '"char"')
_UNKNOWN_TYPE = 0


def is_unencoded(connection: "psycopg.Connection[tuple[Any, ...]]") -> bool:
    """Whether the database holds text of no encoding."""
    return connection.info.parameter_status("server_encoding") == ENCODING


def decode(data: bytes) -> str:
    """Bytes of any kind as text; `encode` gives them back."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The bytes that a text stands for."""
    return text.encode("utf-8", "surrogateescape")


class _TextLoader(Loader):
    def load(self, data: Buffer) -> str:
        return decode(bytes(data))


class _JsonLoader(Loader):
    def load(self, data: Buffer) -> Any:
        return json.loads(decode(bytes(data)))


def read_as_text(connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
    """Make the driver give text where it would give bytes."""
    for name in _TEXT_TYPES:
        connection.adapters.register_loader(name, _TextLoader)
    connection.adapters.register_loader(_UNKNOWN_TYPE, _TextLoader)
    for name in ("json", "jsonb"):
        connection.adapters.register_loader(name, _JsonLoader)


def require_names(*names: str) -> None:
    """Raise SourceUnsupported for a name that is not UTF-8: manifests and screens are."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = encode(name).decode("utf-8", "backslashreplace")
            raise SourceUnsupported(
                f"the name {shown} is not UTF-8",
                hint="rename it (ALTER … RENAME), or leave its table out (exclude)",
            ) from None
