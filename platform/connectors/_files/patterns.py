r"""Exclude patterns of a files source, written as in a .gitignore.

One pattern a line; the last that matches decides. Blank lines and lines that begin with `#` say nothing.

    *.log         any file or folder of that form, at any depth
    /cache        only at the top; so is every pattern with a `/` in its middle: var/cache
    tmp/          folders only
    **/build      at any depth; a/**/b: any number of folders between; logs/**: all that lies below
    *  ?  [a-z]   any characters, one character, one of a set ([!a-z]: none of it); never a `/`
    !keep.log     takes back what an earlier pattern left out, unless a folder above it is left out
    \             makes the next character plain, also a leading # or !, and a trailing blank

A folder that is left out is not entered. Bytes that are no UTF-8 count as one character each.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from engine.errors import UsageError

_ONE = rb"(?:[^/\x80-\xff]|[\xc2-\xf4][\x80-\xbf]{1,3}|[\x80-\xff])"
PATTERNS_MAX = 1000


class _Rule(NamedTuple):
    negated: bool
    folders_only: bool
    expression: bytes


class Patterns:
    """Compiled exclude patterns; call with a relative path and whether it is a folder. Raises UsageError."""

    def __init__(self, lines: Sequence[str]) -> None:
        if len(lines) > PATTERNS_MAX:
            raise UsageError(f"{len(lines)} exclude patterns; {PATTERNS_MAX} are allowed")
        rules = [rule for rule in map(_parse, lines) if rule]
        # Neighbours of one sort become one expression: most sources need a single match per file.
        self._steps = []
        for negated, group in groupby(rules, attrgetter("negated")):
            alike = list(group)
            self._steps.append((negated, _joined(rule for rule in alike if not rule.folders_only), _joined(alike)))

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(self, path: bytes, is_folder: bool) -> bool:
        """True when the entry, and everything below it, is left out."""
        for negated, for_file, for_folder in reversed(self._steps):
            if (for_folder if is_folder else for_file)(path) is not None:
                return not negated
        return False


def _joined(rules: Iterable[_Rule]) -> Callable[[bytes], re.Match[bytes] | None]:
    expressions = [b"(?:%s)" % rule.expression for rule in rules]
    return re.compile(b"|".join(expressions) if expressions else rb"(?!)", re.DOTALL).fullmatch


def _parse(line: str) -> _Rule | None:
    text = line.rstrip("\r\n")
    while text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1]
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    body = os.fsencode(text[negated:])
    folders_only = body.endswith(b"/")
    body = body.rstrip(b"/")
    anchored = b"/" in body
    body = body.lstrip(b"/")
    if not body:
        raise UsageError(f"the exclude pattern {line!r} names nothing", hint="/ alone would leave out the whole source")
    expression = _translate(body, line)
    return _Rule(negated, folders_only, expression if anchored else rb"(?:.*/)?" + expression)


def _translate(body: bytes, line: str) -> bytes:
    out, at = [], 0
    if body.startswith(b"**/"):
        out.append(rb"(?:.*/)?")
        at = 3
    while at < len(body):
        rest = body[at:]
        if rest == b"/**":
            out.append(rb"/.+")
            at += 3
        elif rest.startswith(b"/**/"):
            out.append(rb"/(?:.*/)?")
            at += 4
        elif rest.startswith(b"*"):
            out.append(rb"[^/]*")
            at += len(rest) - len(rest.lstrip(b"*"))
        elif rest.startswith(b"?"):
            out.append(_ONE)
            at += 1
        elif rest.startswith(b"["):
            piece, length = _character_set(rest, line)
            out.append(piece)
            at += length
        else:
            plain = rest[1:2] if rest.startswith(b"\\") and len(rest) > 1 else rest[:1]
            out.append(re.escape(plain))
            at += 2 if rest.startswith(b"\\") and len(rest) > 1 else 1
    return b"".join(out)


def _character_set(rest: bytes, line: str) -> tuple[bytes, int]:
    end = rest.find(b"]", 3 if rest[1:2] in (b"!", b"^") else 2)
    if end < 0:
        raise UsageError(
            f"the exclude pattern {line!r} opens a set and does not close it", hint="write \\[ for a plain ["
        )
    inner = rest[1:end]
    if not inner.isascii():
        raise UsageError(f"the exclude pattern {line!r} has letters beyond ASCII in a set", hint="use ? or *")
    negated = inner[:1] in (b"!", b"^")
    members = inner[negated:].replace(b"\\", b"\\\\").replace(b"]", b"\\]").replace(b"[", b"\\[")
    members = members.replace(b"&&", b"&\\&").replace(b"||", b"|\\|").replace(b"~~", b"~\\~").replace(b"--", b"-\\-")
    expression = b"(?!/)[" + (b"^" if negated else b"") + members + b"]"
    try:
        re.compile(expression)
    except re.error as error:
        raise UsageError(f"the exclude pattern {line!r} has a wrong set", hint=str(error)) from error
    return expression, end + 1
