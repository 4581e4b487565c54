"""Fields of row lines for people, and back: as COPY writes them, which most sources keep."""

from engine.erasures import copy_field
from engine.ports import KeyKind
from engine.table_diff import copy_shown


class CopyFields:
    """The half of engine.ports.Connector about single values, for sources whose fields are COPY's text."""

    @staticmethod
    def field_shown(field: bytes) -> str | None:
        """A field as text, None for null."""
        return copy_shown(field)

    @staticmethod
    def key_field(kind: KeyKind, text: str) -> bytes:
        """A key's value as typed, as a field. Raises ValueError for what cannot be one."""
        return copy_field(kind, text)
