"""Entries as a SIEM takes them: RFC 5424 messages, or CEF within them; and the lines that carry them.

Sources: RFC 5424 (syslog), RFC 5425 and 6587 (TLS and TCP, octet counting), RFC 5426 (UDP), "Implementing ArcSight Common
Event Format", revision 25 (header and extension escapes).
"""

import fcntl
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core.outgoing import Line, OutgoingError, Reach, addresses_of, line_open
from engine.errors import UsageError

AUDIT_FACILITY = 13
"""`log audit` (RFC 5424, table 1)."""
SEVERITIES = {"error": 3, "warning": 4, "info": 6}
CEF_SEVERITIES = {"error": 8, "warning": 5, "info": 2}
STRUCTURED_ID = "lastro@32473"
"""32473 is the enterprise number that RFC 5612 keeps for examples: we have none of our own."""
MESSAGE_BYTES_MAX = 32 << 10
DATAGRAM_BYTES_MAX = 8_192
"""What RFC 5426 asks receivers to take at the most; the rest of a longer message is cut."""
SECONDS_MAX = 60
DRAIN_SECONDS = 10
_SIOCOUTQ = 0x5411
_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}


# ---------------------------------------------------------------- messages


def rfc5424(fields: Mapping[str, Any], leaf: str) -> bytes:
    """One entry as a syslog message: its texts in structured data, the sentence and the data as the message."""
    told = {
        "id": fields["id"], "sequence": str(fields["sequence"]), "user": fields["user_id"], "tenant": fields["tenant"],
        "leaf": leaf, **_from(fields),
    }  # fmt: skip
    pairs = "".join(f' {name}="{_parameter(value)}"' for name, value in told.items() if value)
    data = f" {json.dumps(fields['data'], ensure_ascii=False)}" if fields["data"] else ""
    text = f"{_header(fields)} [{STRUCTURED_ID}{pairs}] \ufeff{_one_line(fields['message'] + data)}"
    return _cut(text)


def cef(fields: Mapping[str, Any], leaf: str) -> bytes:
    """One entry in the Common Event Format, behind a syslog header."""
    head = ("Lastro", "Lastro", _version(), fields["type"], fields["type"].replace(".", " ").replace("_", " "))
    came_from = _from(fields)
    said = {
        "rt": fields["timestamp"], "externalId": fields["id"], "suser": fields["user_id"],
        "src": came_from.get("address", ""), "dvchost": came_from.get("host", ""), "cn1": str(fields["sequence"]),
        "cn1Label": "sequence", "cs1": fields["tenant"], "cs1Label": "tenant" if fields["tenant"] else "", "cs2": leaf,
        "cs2Label": "leaf", "msg": fields["message"],
    }  # fmt: skip
    if fields["data"]:
        said |= {"cs3": json.dumps(fields["data"], ensure_ascii=False), "cs3Label": "data"}
    pairs = " ".join(f"{name}={_extension(value)}" for name, value in said.items() if value)
    header = "|".join(_cef_header(part) for part in head)
    return _cut(f"{_header(fields)} - CEF:0|{header}|{CEF_SEVERITIES.get(fields['level'], 2)}|{pairs}")


def _header(fields: Mapping[str, Any]) -> str:
    came_from = _from(fields)
    priority = AUDIT_FACILITY * 8 + SEVERITIES.get(fields["level"], 6)
    host, pid = _name(came_from.get("host") or socket.gethostname(), 255), _name(came_from.get("pid") or "-", 128)
    return f"<{priority}>1 {fields['timestamp']} {host} lastro {pid} {_name(fields['type'], 32)}"


def _from(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.get("origin", {}).items()}


def _name(text: str, most: int) -> str:
    return re.sub(r"[^!-~]", "_", text)[:most] or "-"


def _parameter(text: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", _one_line(text))


def _extension(text: str) -> str:
    lines = "\n".join(_one_line(line) for line in text.replace("\r\n", "\n").split("\n"))
    return lines.replace("\\", "\\\\").replace("=", "\\=").replace("\n", "\\n")


def _cef_header(text: str) -> str:
    return _one_line(text).replace("\\", "\\\\").replace("|", "\\|")


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _cut(text: str) -> bytes:
    return text.encode()[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore").encode()


def _version() -> str:
    with suppress(PackageNotFoundError):
        return version("lastro")
    return "0"


# ---------------------------------------------------------------- lines


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where messages go: `udp`, `tcp` or `tls`, host and port."""

    scheme: str
    host: str
    port: int


def receiver_read(address: str) -> Receiver:
    """Take `tls://HOST:PORT` apart. Raises UsageError for what is none."""
    shown = f"{address[:80]!r}"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise UsageError(f"LASTRO_AUDIT_SYSLOG: {shown} is no address", hint="tls://siem.example:6514") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or "@" in parts.netloc:
        raise UsageError(
            f"LASTRO_AUDIT_SYSLOG: {shown} is no address of a receiver", hint="tls://, tcp:// or udp://HOST:PORT"
        )
    return Receiver(parts.scheme, parts.hostname, port or _PORTS[parts.scheme])


def messages_send(receiver: Receiver, messages: Iterable[bytes], *, authorities: str, certificate: str) -> None:
    """Send and return when all has arrived: over TCP and TLS, when the receiver's host has acknowledged every byte.

    Nobody acknowledges datagrams. Raises OutgoingError.
    """
    if receiver.scheme == "udp":
        _datagrams_send(receiver, messages)
        return
    with line_open(receiver.host, receiver.port, reach=Reach.HOUSE, seconds=SECONDS_MAX) as line:
        if receiver.scheme == "tls":
            context = _context(authorities, certificate)
            line.sock = context.wrap_socket(line.sock, server_hostname=receiver.host)
        for batch in _framed(messages):
            line.sock.settimeout(line.left)
            line.sock.sendall(batch)
        _drain(line)


def _context(authorities: str, certificate: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authorities or None)
        if certificate:
            context.load_cert_chain(certificate)
    except (OSError, ssl.SSLError) as error:
        named = " or ".join(str(Path(path)) for path in (authorities, certificate) if path)
        raise UsageError(f"{named} cannot be used: {error}", hint="LASTRO_AUDIT_SYSLOG_CA, _CERTIFICATE") from None
    return context


def _framed(messages: Iterable[bytes]) -> Iterator[bytes]:
    """Octet counting (RFC 6587, 3.4.1), some messages in one write."""
    held = bytearray()
    for message in messages:
        held += b"%d %s" % (len(message), message)
        if len(held) > 64 << 10:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _drain(line: Line) -> None:
    """Wait until the peer's TCP has acknowledged all, then take leave. Raises OutgoingError when it does not.

    That `send` returned says only that our kernel has it: of a receiver that dies then, entries would be lost.
    """
    until = time.monotonic() + min(DRAIN_SECONDS, line.left)
    while _unacknowledged(line.sock):
        if time.monotonic() > until:
            raise OutgoingError("the receiver did not take all that was sent", hint="is it overloaded?")
        time.sleep(0.005)
    line.sock.settimeout(1)
    # A receiver that refused us answers with a reset, which shows only now.
    with suppress(TimeoutError, ssl.SSLError):
        if isinstance(line.sock, ssl.SSLSocket):
            line.sock = line.sock.unwrap()
        line.sock.shutdown(socket.SHUT_WR)
        line.sock.recv(1)


def _unacknowledged(sock: socket.socket) -> int:
    answer = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])


def _datagrams_send(receiver: Receiver, messages: Iterable[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    address, *_ = addresses_of(receiver.host, receiver.port, reach=Reach.HOUSE, deadline=deadline)
    with _datagram_socket(address, receiver.port) as sock:
        for message in messages:
            try:
                sock.send(message[:DATAGRAM_BYTES_MAX])
            except OSError as error:
                raise OutgoingError(f"{receiver.host}:{receiver.port}: {error.strerror or error}") from None


@contextmanager
def _datagram_socket(address: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        yield sock
