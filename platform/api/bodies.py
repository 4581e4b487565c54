"""Reading request bodies: strict, bounded JSON objects."""

import json
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework import serializers
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser

from api.shapes import Serializer

BODY_BYTES_MAX = 1024 * 1024


class TooLarge(APIException):
    status_code = 413
    default_detail = "Body too large."
    default_code = "too_large"


class StrictJson(BaseParser):
    """JSON (RFC 8259) in UTF-8, at most a mebibyte: no name twice in an object, no NaN, nothing that is no text."""

    media_type = "application/json"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> Any:
        """Raises ParseError, TooLarge."""
        raw = stream.read(BODY_BYTES_MAX + 1)
        if len(raw) > BODY_BYTES_MAX:
            raise TooLarge(f"a body has {BODY_BYTES_MAX} bytes at the most")
        try:
            found = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        except RecursionError:
            raise ParseError("the body is nested too deeply") from None
        except UnicodeError:
            raise ParseError("the body is not UTF-8, or names half a character") from None
        except ValueError as error:
            raise ParseError(f"the body is no JSON: {str(error)[:200]}") from None
        return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:60]!r} stands twice in one object")
        found[name] = value
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


class Body(Serializer):
    """A request body: an object of known members only."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := sorted(set(map(str, data)) - set(self.fields))):
            known = ", ".join(self.fields) or "none"
            raise serializers.ValidationError({name[:60]: [f"unknown; known: {known}"] for name in unknown[:20]})
        return super().to_internal_value(data)
