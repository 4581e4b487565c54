"""Settings of adapters as rows keep them: parsed, their secrets sealed, never shown again."""

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.rootkey import root_key
from engine.adapters import parse_config, resolve_secret, secret_fields

SHOWN_SECRET = "set"  # noqa: S105 - what stands in its place
"""What stands where a secret would."""


@dataclass(frozen=True)
class Settings:
    """What a row keeps: plain values as JSON, secret ones sealed (base64) under `<owner>:<field>`."""

    plain: dict[str, Any]
    sealed: dict[str, str]


def resolved(config_class: type, given: Mapping[str, str]) -> dict[str, str]:
    """Read `@FILE` and `env:NAME` for the secret fields, so that what is sealed is the secret itself."""
    secrets = secret_fields(config_class)
    return {name: resolve_secret(value) if name in secrets else value for name, value in given.items()}


def seal(config_class: type, values: Mapping[str, Any], *, owner: str) -> Settings:
    """Split parsed or raw values by the class's secret fields; `owner` is `source:<id>` or the like."""
    secrets, root = secret_fields(config_class), root_key()
    return Settings(
        plain={name: value for name, value in values.items() if name not in secrets},
        sealed={
            name: base64.b64encode(root.seal(str(value).encode(), f"{owner}:{name}")).decode()
            for name, value in values.items()
            if name in secrets and value is not None
        },
    )


def unseal(sealed: Mapping[str, str], *, owner: str) -> dict[str, str]:
    """Open sealed values; WrongKey or ObjectDamaged when the root key is another or a value was altered."""
    root = root_key()
    return {name: root.open(base64.b64decode(blob), f"{owner}:{name}").decode() for name, blob in sealed.items()}


def config_of(config_class: type, plain: Mapping[str, Any], sealed: Mapping[str, str], *, owner: str) -> Any:
    """Build the typed Config of a row."""
    return parse_config(config_class, {**plain, **unseal(sealed, owner=owner)})


def given(config_class: type, config: Any, named: Mapping[str, str]) -> dict[str, Any]:
    """The fields that were named, in JSON form: defaults stay the adapter's, also when they change later."""
    values = dataclasses.asdict(config)
    return {f.name: _json(values[f.name]) for f in dataclasses.fields(config_class) if f.name in named}


def shown(config: Mapping[str, Any], sealed: Mapping[str, str]) -> dict[str, Any]:
    """Settings as they may be printed."""
    return {**config, **dict.fromkeys(sealed, SHOWN_SECRET)}


def _json(value: Any) -> Any:
    return "\n".join(value) if isinstance(value, tuple) else value
