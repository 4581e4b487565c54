"""Rules for names, and the refusals they end in."""

import re

from engine.errors import UsageError

SLUG_CHARS_MAX = 50
VERSION_CHARS_MAX = 50
NAME_CHARS_MAX = 200
SOURCE_NAME_CHARS_MAX = 50
TAG_CHARS_MAX = 50
TAGS_MAX = 20

# `general` confirms a restore of the general structure, so no tenant may answer to it.
RESERVED_SLUGS = frozenset({"general", "all", "default", "none"})

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\Z")
# No dot and no slash: a source's name is a folder in a restore target and the SOURCE of SOURCE.KEY=VALUE.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/=+@-]*\Z")


def slug_checked(slug: str) -> str:
    """Return a tenant's slug; UsageError when it is none."""
    if len(slug) > SLUG_CHARS_MAX or not _SLUG.match(slug):
        raise UsageError(
            f"{slug[:80]!r} cannot be a tenant's slug",
            hint=f"lower-case letters, digits and inner hyphens, {SLUG_CHARS_MAX} at the most, for example hotel-aurora",
        )
    if slug in RESERVED_SLUGS:
        raise UsageError(f"{slug!r} is reserved", hint=f"choose another slug, for example tenant-{slug}")
    return slug


def name_checked(noun: str, name: str) -> str:
    """Return the name of a source or a store; UsageError when it is none."""
    if len(name) > SOURCE_NAME_CHARS_MAX or not _NAME.match(name):
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a {noun}",
            hint=f"letters, digits, hyphen and underscore, {SOURCE_NAME_CHARS_MAX} at the most, for example main-db",
        )
    return name


def title_checked(title: str) -> str:
    """Return a display name: one line, not empty."""
    title = title.strip()
    if not title or len(title) > NAME_CHARS_MAX or not title.isprintable():
        raise UsageError(
            "the name is empty, too long or not one line", hint=f"1 to {NAME_CHARS_MAX} printable characters"
        )
    return title


def version_checked(version: str) -> str:
    """Return a platform version as it is: printable, without spaces; empty for not known."""
    if len(version) > VERSION_CHARS_MAX or any(c.isspace() or not c.isprintable() for c in version):
        raise UsageError(
            f"{version[:60]!r} is no platform version", hint=f"up to {VERSION_CHARS_MAX} characters without spaces"
        )
    return version


def tags_checked(tags: list[str] | tuple[str, ...]) -> list[str]:
    """Return the tags without repeats, in the order given."""
    unique = list(dict.fromkeys(tags))
    if len(unique) > TAGS_MAX:
        raise UsageError(f"{len(unique)} tags are too many", hint=f"{TAGS_MAX} at the most")
    for tag in unique:
        if len(tag) > TAG_CHARS_MAX or not _TAG.match(tag):
            raise UsageError(
                f"{tag[:80]!r} cannot be a tag", hint="letters, digits and _ . : / = + @ -, for example pre-deploy"
            )
    return unique
