"""Figures as people read them: sizes, ages, durations."""

import datetime

from django import template

from core.cli_output import size_text

register = template.Library()

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


@register.filter
def size(count: int | None) -> str:
    """`2.5 GB`; a dash for nothing."""
    return "–" if count is None else size_text(count)


@register.filter
def age(at: datetime.datetime | None, now: datetime.datetime) -> str:
    """`2 h 14 min` before now; `never` for no time at all."""
    return "never" if at is None else span(max(0, int((now - at).total_seconds())))


@register.filter
def milliseconds(count: int | None) -> str:
    """`350 ms`, `1.2 s`, `3 min 5 s`."""
    if not count:
        return "–"
    if count < 1_000:
        return f"{count} ms"
    return f"{count / 1_000:.1f} s" if count < _MINUTE * 1_000 else span(count // 1_000)


def span(seconds: int) -> str:
    """The two largest units of a time span."""
    if seconds < _MINUTE:
        return f"{seconds} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE} min"
    if seconds < _DAY:
        return f"{seconds // _HOUR} h {seconds % _HOUR // _MINUTE} min"
    return f"{seconds // _DAY} d {seconds % _DAY // _HOUR} h"


@register.filter
def short(digest: str | None) -> str:
    """The first characters of a checksum or id: enough to compare by eye."""
    return (digest or "")[:12] or "–"
