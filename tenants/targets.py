"""Targets of a restore: `KEY=VALUE` or `SOURCE.KEY=VALUE`, spread over the sources of the backup."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from engine.adapters import resolve_secret, secret_fields
from engine.errors import NameUnknown, UsageError
from tenants import wiring
from tenants.models import Source
from tenants.places import target_folder_checked, target_of_others_checked

_FOLDER_KEY = "path"


@dataclass
class Targets:
    """Per source name its target settings; secret ones apart, both empty for a restore in place."""

    plain: dict[str, dict[str, str]] = field(default_factory=dict)
    secret: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, source: str) -> dict[str, str]:
        return {**self.plain.get(source, {}), **self.secret.get(source, {})}

    def __bool__(self) -> bool:
        return bool(self.plain or self.secret)


def targets_parse(given: Sequence[str], sources: Mapping[str, Source]) -> Targets:
    """Spread the given targets over the sources.

    A target without a source goes to every source whose kind knows its key; with several of these, `path=DIR`
    means DIR/<source> for each. Raises UsageError when a source would be left without a target: an alternative
    restore never falls back to writing in place.
    """
    named: dict[str, dict[str, str]] = {name: {} for name in sources}
    for text in given:
        for name, key, value in _one(text, sources):
            if key in named[name]:
                raise UsageError(f"target {key} of source {name} is given twice")
            named[name][key] = value
    left = [name for name, settings in named.items() if not settings]
    if given and left:
        raise UsageError(
            f"source {left[0]} has no target",
            hint=f"add --target {left[0]}.KEY=VALUE, or leave it out by naming the others with --source",
        )
    targets = Targets()
    for name, settings in named.items():
        _sort(targets, sources[name], settings)
        target_of_others_checked(sources[name], targets.of(name))
    _apart(targets)
    return targets


def _apart(targets: Targets) -> None:
    """Refuse two sources in one folder, or one inside another: the later would find, or replace, the earlier."""
    taken = sorted(
        (Path(settings[_FOLDER_KEY]), name) for name, settings in targets.plain.items() if _FOLDER_KEY in settings
    )
    for (outer, first), (inner, second) in pairwise(taken):
        if outer == inner or outer in inner.parents:
            raise UsageError(
                f"the targets of {first} and {second} overlap: {inner}",
                hint="give each a folder of its own, or --target path=DIR once for DIR/<source>",
            )


def _one(text: str, sources: Mapping[str, Source]) -> list[tuple[str, str, str]]:
    left, equals, value = text.partition("=")
    name, dot, key = left.partition(".")
    if not equals or not value or not left:
        raise UsageError("a target is KEY=VALUE or SOURCE.KEY=VALUE", hint="for example --target path=/tmp/copy")
    if dot:
        if name not in sources:
            raise NameUnknown(f"the restore has no source {name!r}", hint=f"it has: {', '.join(sorted(sources))}")
        return [(name, key, value)]
    key = left
    able = [name for name, source in sources.items() if key in wiring.connector_kind(source.kind).target_keys]
    if not able:
        known = sorted({key for source in sources.values() for key in wiring.connector_kind(source.kind).target_keys})
        raise UsageError(f"no source knows a target {key!r}", hint=f"known: {', '.join(known)}")
    if len(sources) == 1:
        return [(able[0], key, value)]
    if key != _FOLDER_KEY and len(able) > 1:
        raise UsageError(
            f"{key} could be meant for {' or '.join(able)}", hint=f"say which: --target {able[0]}.{key}=VALUE"
        )
    if key == _FOLDER_KEY:
        return [(name, key, os.path.join(value, name)) for name in able]
    return [(able[0], key, value)]


def _sort(targets: Targets, source: Source, settings: Mapping[str, str]) -> None:
    secrets = secret_fields(wiring.connector_kind(source.kind).Config)
    for key, value in settings.items():
        if key in secrets:
            targets.secret.setdefault(source.name, {})[key] = resolve_secret(value)
            continue
        if key == _FOLDER_KEY:
            value = os.path.abspath(value)
            target_folder_checked(value)
        targets.plain.setdefault(source.name, {})[key] = value
