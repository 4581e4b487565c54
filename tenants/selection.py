"""What of a backup a restore is about: sources, modules, policies, clocks; checked against the manifest."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self, cast, get_args

from engine.errors import NameUnknown, UsageError
from engine.manifest import Manifest
from engine.plans import MODES, POLICIES, Policy, RestoreMode

NAMES_SHOWN_MAX = 20
EVERYWHERE = "*"
"""In the place of a module: every module of the restore."""


@dataclass(frozen=True)
class Wish:
    """What was asked for, in the words of the command line."""

    mode: str = "full"
    sources: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ()
    base: str = ""


@dataclass(frozen=True)
class Selection:
    """What was meant, per source; kept as JSON in `wishes`."""

    mode: RestoreMode = "full"
    sources: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, Policy]] = field(default_factory=dict)
    clocks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Mode and sources have fields of their own."""
        return {name: value for name, value in asdict(self).items() if name not in ("mode", "sources")}

    @classmethod
    def of(cls, mode: str, sources: Sequence[str], wishes: Mapping[str, Any]) -> Self:
        """Read back what `as_json` gave."""
        return cls(
            mode=cast(RestoreMode, mode),
            sources=tuple(sources),
            modules={name: tuple(each) for name, each in wishes.get("modules", {}).items()},
            policies=wishes.get("policies", {}),
            clocks=wishes.get("clocks", {}),
        )


def wish_checked(wish: Wish) -> None:
    """Raise UsageError for what cannot go together, before anything is read."""
    if wish.mode not in MODES:
        raise UsageError(f"mode {wish.mode!r} is not known", hint=f"one of: {', '.join(MODES)}")
    if wish.modules and wish.mode != "selective":
        raise UsageError(f"--module does not go with --mode {wish.mode}", hint="choose modules with --mode selective")
    if wish.mode == "selective" and not wish.modules:
        raise UsageError("a selective restore needs --module", hint="module list TENANT shows them")
    for given, name in ((wish.policies, "--policy"), (wish.clocks, "--clock"), (wish.base, "--base")):
        if given and wish.mode != "merge":
            raise UsageError(f"{name} does not go with --mode {wish.mode}", hint="it decides a merge: --mode merge")


def selection_of(wish: Wish, manifest: Manifest, sources: Sequence[str]) -> Selection:
    """Find what was named in the backup. Raises NameUnknown, with names that are close, for what it does not hold.

    A selective restore leaves out every source of which no module was chosen.
    """
    contents = Contents(manifest, sources)
    modules: dict[str, list[str]] = {}
    for text in wish.modules:
        source, module = contents.module(text)
        modules.setdefault(source, []).append(module)
    if wish.mode == "selective":
        idle = [name for name in wish.sources if name not in modules]
        if idle:
            raise UsageError(
                f"no module of source {idle[0]} is chosen", hint=f"add --module {idle[0]}.MODULE, or leave it out"
            )
        sources = [name for name in sources if name in modules]
    return Selection(
        mode=cast(RestoreMode, wish.mode),
        sources=tuple(sources),
        modules={name: tuple(dict.fromkeys(each)) for name, each in modules.items()},
        policies=_policies(wish.policies, contents),
        clocks=_clocks(wish.clocks, contents),
    )


class Contents:
    """Names of the modules and tables of some sources of one backup."""

    def __init__(self, manifest: Manifest, sources: Sequence[str]) -> None:
        document = manifest.document
        self.modules: dict[str, list[str]] = {name: [] for name in sources}
        for each in document["modules"]:
            if each["source"] in self.modules and each["name"] not in self.modules[each["source"]]:
                self.modules[each["source"]].append(each["name"])
        self.tables: dict[str, dict[str, list[str]]] = {
            node["name"]: {table["name"]: [column["name"] for column in table["columns"]] for table in node["tables"]}
            for node in document["sources"]
            if node["name"] in self.modules
        }

    def module(self, text: str) -> tuple[str, str]:
        """Source and name of `MODULE` or `SOURCE.MODULE`."""
        return _found("module", text, self.modules)

    def table(self, text: str) -> tuple[str, str]:
        """Source and name of `TABLE` or `SOURCE.TABLE`."""
        return _found("table", text, {source: list(tables) for source, tables in self.tables.items()})


def _found(noun: str, text: str, names: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Look for the whole name, then for SOURCE.NAME, then for the last part of a dotted name."""
    ways = (
        [(source, name) for source, each in names.items() for name in each if name == text],
        [(source, name) for source, each in names.items() for name in each if f"{source}.{name}" == text],
        [(source, name) for source, each in names.items() for name in each if name.rpartition(".")[2] == text],
    )
    found = next(filter(None, ways), [])
    if len(found) == 1:
        return found[0]
    if found:
        where = " and ".join(f"{source}.{name}" for source, name in found[:NAMES_SHOWN_MAX])
        raise UsageError(f"{noun} {text!r} could be {where}", hint=f"say which: {found[0][0]}.{found[0][1]}")
    known = sorted({name for each in names.values() for name in each})
    close = difflib.get_close_matches(text, [*known, *(f"{s}.{n}" for s, each in names.items() for n in each)], n=3)
    shown = ", ".join(known[:NAMES_SHOWN_MAX]) + (" …" if len(known) > NAMES_SHOWN_MAX else "")
    raise NameUnknown(
        f"no {noun} {text[:80]!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""),
        hint=f"the backup has: {shown}" if known else f"the backup has no {noun}s here",
    )


def _policies(given: Sequence[str], contents: Contents) -> dict[str, dict[str, Policy]]:
    policies: dict[str, dict[str, Policy]] = {}
    for text in given:
        name, equals, policy = text.rpartition("=")
        if not equals or not name:
            raise UsageError("a policy is MODULE=POLICY", hint=f"POLICY is one of: {', '.join(POLICIES)}")
        if policy not in get_args(Policy):
            close = difflib.get_close_matches(policy, POLICIES, n=1)
            raise UsageError(
                f"no policy {policy[:80]!r}" + (f"; did you mean {close[0]}?" if close else ""),
                hint=f"one of: {', '.join(POLICIES)}",
            )
        if name == EVERYWHERE:
            chosen = [(source, module) for source, each in contents.modules.items() for module in each]
        else:
            chosen = [contents.module(name)]
        for source, module in chosen:
            own = policies.setdefault(source, {})
            # What is named outranks what is meant by the star, whichever comes first.
            if name != EVERYWHERE or module not in own:
                own[module] = cast(Policy, policy)
    return policies


def _clocks(given: Sequence[str], contents: Contents) -> dict[str, dict[str, str]]:
    clocks: dict[str, dict[str, str]] = {}
    for text in given:
        name, equals, column = text.rpartition("=")
        if not equals or not name or not column:
            raise UsageError("a clock is TABLE=COLUMN", hint="for example --clock reservations=updated_at")
        source, table = contents.table(name)
        columns = contents.tables[source][table]
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=3)
            raise NameUnknown(
                f"table {table} has no column {column[:80]!r}"
                + (f"; did you mean {' or '.join(close)}?" if close else ""),
                hint=f"it has: {', '.join(columns[:NAMES_SHOWN_MAX])}",
            )
        clocks.setdefault(source, {})[table] = column
    return clocks
