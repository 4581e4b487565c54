"""A policy: the numbers of the rules, as they are set, stored and said in words."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from engine.errors import UsageError
from tenants.rules import tags_checked

FOREVER = 1 << 40
"""More periods than there are: what `forever` means in a count."""
FOREVER_TEXT = "forever"
DAYS_MAX = 36_500
COUNT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept, whatever the order of these rules: a backup stays as long as any of them keeps it.

    `…_days` keep every backup of the last calendar days, today included. `…_count` keep the newest backup of each of
    that many calendar days, ISO weeks, months or years that have one; `…_full_count` count full backups alone.
    """

    incremental_days: int = 7
    weekly_full_count: int = 4
    monthly_full_count: int = 3
    daily_count: int = 0
    weekly_count: int = 0
    monthly_count: int = 0
    yearly_count: int = 0
    pre_deploy_days: int = 30
    kept_tags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As rows and files keep it; a count without end is `"forever"`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else FOREVER_TEXT if value == FOREVER else value
            for name, value in values.items()
        }


def keeps_less(before: Policy, after: Policy) -> bool:
    """Whether a policy keeps less than another one by any of its rules, now or later."""
    names = [each.name for each in fields(Policy) if each.name != "kept_tags"]
    return any(getattr(after, name) < getattr(before, name) for name in names) or not set(before.kept_tags) <= set(
        after.kept_tags
    )


NOTHING = Policy(
    incremental_days=0, weekly_full_count=0, monthly_full_count=0, pre_deploy_days=0
)  # fmt: skip
DEFAULT = Policy()
STRUCTURE = replace(NOTHING, monthly_count=12)
"""Of the general structure's snapshots; those of major releases are never ended at all."""

PRESETS: Mapping[str, Policy] = {"default": DEFAULT, "structure": STRUCTURE}
_TIERS: Mapping[str, Policy] = {
    "local": replace(NOTHING, daily_count=7, pre_deploy_days=30),
    "sftp": replace(NOTHING, daily_count=7, pre_deploy_days=30),
    "s3": replace(NOTHING, daily_count=7, weekly_count=4, pre_deploy_days=30),
    "gcs": replace(NOTHING, monthly_count=12, yearly_count=FOREVER),
    "azure": replace(NOTHING, monthly_count=12, yearly_count=FOREVER),
}
TIERS = "tiers"


def preset(name: str, *, store_kind: str = "") -> Policy:
    """The policy of a preset; `tiers` depends on the kind of the store. Raises UsageError."""
    if name == TIERS:
        if store_kind in _TIERS:
            return _TIERS[store_kind]
        raise UsageError(
            f"the preset {TIERS} has no tier for {f'a store of kind {store_kind}' if store_kind else 'no store'}",
            hint=f"name a store of kind {', '.join(sorted(_TIERS))}: --store NAME --preset {TIERS}",
        )
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name[:40]!r}", hint=f"there are {', '.join((*PRESETS, TIERS))}")
    return PRESETS[name]


def policy_of(values: Mapping[str, Any], *, base: Policy = NOTHING) -> Policy:
    """A policy from JSON or from the texts of a command line, on top of another one. Raises UsageError."""
    known = {field.name for field in fields(Policy)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(
            f"retention knows no {unknown[0][:40]!r}",
            hint=f"it knows {', '.join(field.name for field in fields(Policy))}",
        )
    return replace(base, **{name: _value(name, given) for name, given in values.items()})


def _value(name: str, given: Any) -> Any:
    if name == "kept_tags":
        return _tags(given)
    most = DAYS_MAX if name.endswith("_days") else COUNT_MAX
    if isinstance(given, str):
        text = given.strip().lower()
        if text == FOREVER_TEXT:
            return FOREVER
        given = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= most:
        raise UsageError(f"{name} takes a whole number from 0 to {most}, or {FOREVER_TEXT}")
    return given


def _tags(given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        given = [part for part in (part.strip() for part in given.replace("\n", ",").split(",")) if part]
    if not isinstance(given, list | tuple) or not all(isinstance(tag, str) for tag in given):
        raise UsageError("kept_tags takes tags, joined by commas", hint="for example kept_tags=year-end,audit")
    return tuple(sorted(tags_checked(list(given))))


_WORDS: Mapping[str, tuple[str, str, str]] = {
    "incremental_days": ("every backup of the last {} days", "every backup of today", "every backup"),
    "daily_count": ("the newest of each of {} days", "the newest of the newest day", "the newest of each day"),
    "weekly_count": ("the newest of each of {} weeks", "the newest of the newest week", "the newest of each week"),
    "weekly_full_count": ("the newest full one of each of {} weeks", "the newest full one of the newest week", "the newest full one of each week"),
    "monthly_count": ("the newest of each of {} months", "the newest of the newest month", "the newest of each month"),
    "monthly_full_count": ("the newest full one of each of {} months", "the newest full one of the newest month", "the newest full one of each month"),
    "yearly_count": ("the newest of each of {} years", "the newest of the newest year", "the newest of each year"),
    "pre_deploy_days": ("those before a deployment for {} days", "those before a deployment for a day", "those before a deployment"),
}  # fmt: skip


def policy_words(policy: Policy) -> str:
    """The policy in one sentence for people."""
    said = []
    for name, (many, one, all_of_them) in _WORDS.items():
        value = getattr(policy, name)
        if value:
            said.append(f"{all_of_them}, for ever" if value == FOREVER else one if value == 1 else many.format(value))
    if policy.kept_tags:
        said.append(f"whatever is tagged {' or '.join(policy.kept_tags)}")
    return "; ".join(said) or "nothing but the last good backup of each source"
