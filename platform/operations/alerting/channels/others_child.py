"""The process in which Apprise runs: reads one JSON document, sends once, prints one.

Run by path with `-I`; it knows no settings and no catalogue. An audit hook (PEP 578) judges every address at the moment
of the connection, so that neither a redirect nor a name that changes its mind leads anywhere else.
"""

import ipaddress
import json
import logging
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES_MAX = 1 << 30
SAID_CHARS_MAX = 300
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")

_refused: list[str] = []


class Refused(OSError):
    """Not to there."""


def _guard_with(allowed: list[Any]) -> None:
    from core.addresses import address_refusal

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _SENDS:
            _judge(arguments[1] if len(arguments) > 1 else None)
        elif event in _STARTS:
            raise Refused(f"{event} is not allowed here")
        elif event == "open" and _writes(arguments):
            raise Refused("writing files is not allowed here")

    def _judge(address: Any) -> None:
        if address is None:
            return  # A datagram on a socket that is connected, which was judged then.
        host = address[0] if isinstance(address, tuple) and address else ""
        try:
            plain = ipaddress.ip_address(str(host).partition("%")[0])
        except ValueError:
            _no(f"{str(address)[:60]} is no address that could be judged")
        if why := address_refusal(plain, public_only=True, allowed=allowed):
            _no(f"it leads to {plain}, which {why}")

    sys.addaudithook(guard)


def _no(why: str) -> None:
    _refused.append(why)
    raise Refused(why)


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode, flags = (*arguments, None, None, None)[:3]
    if str(path) == os.devnull:
        return False
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _without_secrets(text: str, url: str) -> str:
    """What the library logs may repeat parts of the address: every longer piece of it is a secret."""
    for piece in sorted(re.split(r"[^A-Za-z0-9_-]+", url.partition("://")[2]), key=len, reverse=True):
        if len(piece) >= 6:
            text = text.replace(piece, "***")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SAID_CHARS_MAX]


def main() -> None:
    """See the module."""
    asked = json.load(sys.stdin)
    answer = sys.stdout
    sys.stdout = sys.stderr
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    import apprise

    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(lines) < 10:
                lines.append(record.getMessage())

    logging.getLogger("apprise").addHandler(Keep(logging.WARNING))
    _guard_with([ipaddress.ip_network(each) for each in asked["allow"]])
    service = apprise.Apprise()
    ok = bool(service.add(asked["url"]))
    if ok and asked["mode"] == "send":
        ok = bool(service.notify(title=asked["title"], body=asked["body"], notify_type=asked["type"]))
    said = _without_secrets("; ".join(lines), asked["url"])
    json.dump({"ok": ok, "said": said, "refused": _refused[0] if _refused and not ok else ""}, answer)


if __name__ == "__main__":
    main()
