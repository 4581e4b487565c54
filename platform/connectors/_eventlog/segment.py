"""Names of segment files and the streaming reader of their JSON."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

LOG_FOLDER = "event-log"
SNAPSHOT_NAME = "event-log-snapshot.json"
BLOCK_BYTES = 1 << 20
EVENT_CHARS_MAX = 4 << 20
"""An event is a few hundred characters; this bounds what a damaged or hostile segment can make us hold."""

_SEGMENT_NAME = re.compile(r"segment-([0-9]{1,12})\.json")
_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


class SegmentMalformed(ValueError):
    """The bytes of a segment are no JSON array in UTF-8; the events before the place were delivered."""


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A segment's number and file name; sorts by number, the canonical name first among duplicates."""

    number: int
    odd: bool
    name: str

    @property
    def path(self) -> str:
        """Path relative to the data folder."""
        return f"{LOG_FOLDER}/{self.name}"


def segment_name(name: str) -> SegmentName | None:
    """Parse a file name of the log folder; None when it is no segment."""
    match = _SEGMENT_NAME.fullmatch(name)
    if match is None:
        return None
    number = int(match[1])
    return SegmentName(number, name != f"segment-{number:06d}.json", name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise SegmentMalformed("a field occurs twice in one object")
    return fields


def _no_constant(name: str) -> Any:
    raise SegmentMalformed(f"{name} is no JSON")


DECODER: Any = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
"""Strict: no repeated fields, no NaN or Infinity, no raw control characters in strings."""


class _Window:
    """The part of a segment's text that is not yet parsed; grows block by block."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._broken: UnicodeDecodeError | None = None
        self._dropped = 0
        self.text = ""
        self.position = 0

    def more(self) -> bool:
        """Append the next block's text and forget what was parsed; False at the end of the bytes."""
        if self._broken is not None:
            raise SegmentMalformed(f"no UTF-8 after character {self._dropped + len(self.text)}") from self._broken
        block = next(self._blocks, None)
        try:
            fresh = self._decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            # The events in front of the bad byte still count: deliver them, fail at the next call.
            fresh = bytes(error.object[: error.start]).decode("utf-8")
            self._broken = error
        self._dropped += self.position
        self.text = self.text[self.position :] + fresh
        self.position = 0
        return block is not None

    def skip_space(self) -> str:
        """Move behind white space and return the next character, "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def place(self) -> str:
        return f"at character {self._dropped + self.position}"


def _scan(window: _Window) -> Any:
    """Parse one array element at the window's position, fetching more text while it is cut off."""
    while True:
        try:
            value, window.position = DECODER.scan_once(window.text, window.position)
            return value
        except SegmentMalformed as error:
            raise SegmentMalformed(f"{error} {window.place()}") from error
        except (ValueError, StopIteration, RecursionError) as error:
            if len(window.text) - window.position > EVENT_CHARS_MAX:
                raise SegmentMalformed(f"no JSON {window.place()}") from error
            if not window.more():
                raise SegmentMalformed(f"no JSON {window.place()}: {_words(error)}") from error


def _words(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "too deep" if isinstance(error, RecursionError) else "cut off"


def read_events(blocks: Iterable[bytes]) -> Iterator[list[Any]]:
    """Yield the elements of a segment's JSON array in batches, holding a block and an event at the most.

    Raises SegmentMalformed after the last whole element in front of the place that is no JSON. Elements
    are not checked here: they may be anything that JSON allows.
    """
    window = _Window(blocks)
    if window.skip_space() != "[":
        raise SegmentMalformed(f"no JSON array {window.place()}")
    window.position += 1
    if window.skip_space() == "]":
        window.position += 1
    else:
        yield from _elements(window)
    if window.skip_space() != "":
        raise SegmentMalformed(f"text behind the array {window.place()}")


def _elements(window: _Window) -> Iterator[list[Any]]:
    scan = DECODER.scan_once
    comma = _COMMA.match
    batch: list[Any] = []
    while True:
        try:
            text, position = window.text, window.position
            try:
                # The fast lane: whole elements and whole separators inside the window.
                while True:
                    value, end = scan(text, position)
                    match = comma(text, end)
                    if match is None or match.end() == len(text):
                        break
                    batch.append(value)
                    position = match.end()
            except (ValueError, StopIteration, RecursionError):
                pass
            window.position = position
            if batch:
                yield batch
                batch = []
            value = _scan(window)
            if not isinstance(value, dict) and window.position == len(window.text):
                # A number at the window's edge may go on in the next block; no event is a number.
                raise SegmentMalformed(f"no object {window.place()}")
            batch.append(value)
            mark = window.skip_space()
            if mark == "]":
                window.position += 1
                yield batch
                return
            if mark != ",":
                raise SegmentMalformed(f"no comma or end of the array {window.place()}")
            window.position += 1
            window.skip_space()
        except SegmentMalformed:
            if batch:
                yield batch
            raise
