"""Registries of connectors and stores, and the typed settings that each adapter declares.

An adapter is one file: a frozen dataclass `Config` whose fields are made with `setting(...)`, and a
class decorated with `@registry.register`. Forms, the API schema, the documentation and the contract
tests read the declaration; nothing else has to be touched. The SDK is imported on opening.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar, get_type_hints

from engine.bounded import read_bounded
from engine.errors import UsageError


def setting(
    *,
    label: str,
    help: str = "",
    default: Any = dataclasses.MISSING,
    secret: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one field of a Config; `secret` fields are write-only and stored sealed."""
    meta = {"label": label, "help": help, "secret": secret, "choices": choices}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=meta, repr=not secret)
    return dataclasses.field(default=default, metadata=meta, repr=not secret)


class Adapter(Protocol):
    kind: ClassVar[str]
    Config: ClassVar[type]


A = TypeVar("A", bound=Adapter)


class Registry(Generic[A]):
    """Adapters of one sort by kind."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._kinds: dict[str, type[A]] = {}

    def register(self, adapter: type[A]) -> type[A]:
        """Class decorator; the kind must be new."""
        assert adapter.kind not in self._kinds, f"{self.noun} kind {adapter.kind} registered twice"
        self._kinds[adapter.kind] = adapter
        return adapter

    def get(self, kind: str) -> type[A]:
        """Raise UsageError naming the known kinds when this one is unknown."""
        try:
            return self._kinds[kind]
        except KeyError:
            known = ", ".join(sorted(self._kinds))
            raise UsageError(f"unknown {self.noun} kind {kind!r}", hint=f"one of: {known}") from None

    def __iter__(self) -> Iterator[type[A]]:
        return iter(self._kinds[k] for k in sorted(self._kinds))


def secret_fields(config_class: type) -> frozenset[str]:
    """Names of the fields of a Config that are write-only."""
    return frozenset(f.name for f in dataclasses.fields(config_class) if f.metadata.get("secret"))


SETTING_CHARS_MAX = 65_536
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


def _convert(name: str, wanted: Any, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if len(value) > SETTING_CHARS_MAX or "\0" in value:
        raise UsageError(f"{name} is too long or holds a NUL", hint=f"{SETTING_CHARS_MAX} characters at the most")
    optional = str(wanted).replace(" ", "").endswith("|None")
    if optional and value == "":
        return None
    base = str(wanted).replace(" ", "").removesuffix("|None") if optional else wanted
    if base in (bool, "bool"):
        if value.lower() in _TRUE:
            return True
        if value.lower() in _FALSE:
            return False
        raise UsageError(f"{name}: {value!r} is not yes or no", hint="use true or false")
    if base in (int, "int"):
        try:
            return int(value)
        except ValueError:
            raise UsageError(f"{name}: {value!r} is not a whole number") from None
    if str(base).startswith("tuple"):
        return tuple(part for part in value.split("\n") if part)
    return value


def parse_config(config_class: type, values: Mapping[str, Any]) -> Any:
    """Build a Config from strings (command line, form, JSON); tuples come newline-separated.

    Raises UsageError for an unknown or missing key, a value of the wrong type or outside its choices.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    hints = get_type_hints(config_class)
    for key in values:
        if key not in fields:
            raise UsageError(f"unknown setting {key[:60]!r}", hint=f"known: {', '.join(sorted(fields))}")
    parsed: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in values:
            if field.default is dataclasses.MISSING:
                raise UsageError(f"setting {name!r} is missing", hint=f"{field.metadata['label']}: --set {name}=VALUE")
            continue
        value = _convert(name, hints[name], values[name])
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise UsageError(f"{name}: {value!r} is not one of {', '.join(choices)}")
        parsed[name] = value
    return config_class(**parsed)


def resolve_secret(value: str) -> str:
    """Read `@FILE` and `env:NAME` references; any other value is itself. Raises UsageError."""
    if value.startswith("@"):
        try:
            return read_bounded(value[1:], bytes_max=SETTING_CHARS_MAX).decode().rstrip("\n")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name, no UTF-8 in the file.
            said = getattr(error, "strerror", None) or "it is no text"
            raise UsageError(f"cannot read secret file {value[1:]}: {said}") from error
    if value.startswith("env:"):
        try:
            return os.environ[value[4:]]
        except KeyError:
            raise UsageError(f"environment variable {value[4:]} is not set") from None
    return value
