"""Calls to addresses that people typed in: judged, pinned, bounded.

Whoever may configure a hook or a channel must not thereby reach what only this host can reach. A name is resolved once,
every address it leads to is judged, and the connection goes to an address that was judged (a name that says something
else a moment later changes nothing). Redirects are not followed. Everything ends at its deadline, also with a peer that
sends a byte a minute: a timer cuts the line.

`Reach.HOUSE` may go to private networks, where applications are; `Reach.INTERNET` only to public addresses and to what
LASTRO_OUTGOING_ALLOW names. Neither goes where clouds hand out credentials, unless that list says so.
"""

import enum
import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from core.addresses import Address, address_refusal
from core.errors import CatalogueError
from core.logs import redact
from engine.errors import UsageError

ADDRESSES_MAX = 16
"""A name with more of them is judged by all, and called at these."""
ANSWER_BYTES_MAX = 16 << 10
URL_CHARS_MAX = 2_000


class OutgoingError(CatalogueError):
    """The peer could not be reached or broke off."""

    code = "outgoing.failed"
    retryable = True


class OutgoingTimeout(OutgoingError):
    code = "outgoing.timed_out"


class OutgoingRefused(OutgoingError):
    """We do not call there."""

    code = "outgoing.refused"
    retryable = False


class Reach(enum.Enum):
    HOUSE = "house"
    INTERNET = "internet"


# ---------------------------------------------------------------- judging


def url_checked(text: str, *, reach: Reach) -> SplitResult:
    """Take an address apart. Raises UsageError for what is none, and for an address literal that is refused."""
    shown = _shown(text)
    if len(text) > URL_CHARS_MAX or not text.isprintable() or not text.isascii() or " " in text:
        raise UsageError("the address is too long or holds characters that no address may have")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise UsageError(f"{shown} is no address: {error}") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise UsageError(f"{shown} is no address of http:// or https://", hint="for example https://app.example/path")
    if url.username is not None or url.password is not None:
        raise UsageError("an address must not hold a user or a password", hint="give a header: Authorization: …")
    # Names are looked up when they are called; an address as such is judged before it stops something at night.
    with suppress(ValueError):
        literal = ipaddress.ip_address(url.hostname.partition("%")[0])
        if why := refusal(literal, reach=reach):
            raise UsageError(f"{url.hostname} {why}", hint=_hint(reach))
    return url


def _shown(text: str) -> str:
    """Scheme and host alone: what comes behind them is a secret in many an address."""
    head = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(?://)?[^/?#@\s]*(?=[/?#\s]|$)", text[:100])
    return repr(head[0][:80] if head else text.partition("/")[0].rpartition("@")[2][:40])


def refusal(address: Address, *, reach: Reach) -> str:
    """Why nothing may be sent to the address, as the end of a sentence; empty when it may."""
    return address_refusal(address, public_only=reach is Reach.INTERNET, allowed=settings.LASTRO_OUTGOING_ALLOW)


def _hint(reach: Reach) -> str:
    if reach is Reach.HOUSE:
        return "give the application's own address"
    return "if it is yours and meant, list it in LASTRO_OUTGOING_ALLOW (addresses or networks)"


def _resolved(host: str, port: int, deadline: float) -> list[str]:
    """Look the name up, in a thread: the system's resolver knows no deadline."""
    answer: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def look() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put([str(each[4][0]) for each in found])
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=look, name="resolve", daemon=True).start()
    try:
        said = answer.get(timeout=max(0.01, deadline - time.monotonic()))
    except queue.Empty:
        raise OutgoingTimeout(f"{host} was not resolved in time", hint="is the name server up?") from None
    if isinstance(said, list):
        return list(dict.fromkeys(said))
    raise OutgoingError(
        f"cannot resolve {host}: {getattr(said, 'strerror', None) or said}", hint="is the name right?"
    ) from None


def addresses_of(host: str, port: int, *, reach: Reach, deadline: float) -> list[str]:
    """Resolve once and judge every address; those to call. Raises OutgoingRefused when one of them is refused."""
    found = _resolved(host, port, deadline)
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        if why := refusal(address, reach=reach):
            named = host if host == text else f"{host} leads to {address}, which"
            raise OutgoingRefused(f"{named} {why}: nothing was sent", hint=_hint(reach))
    return found[:ADDRESSES_MAX]


# ---------------------------------------------------------------- connections


@dataclass
class Line:
    """An open connection that is cut at its deadline (of time.monotonic)."""

    sock: socket.socket
    deadline: float

    @property
    def left(self) -> float:
        return max(0.01, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise TimeoutError past the deadline: what a line that was cut seems to have said at its end is not heard."""
        if time.monotonic() >= self.deadline:
            raise TimeoutError


@contextmanager
def line_open(host: str, port: int, *, reach: Reach, seconds: float) -> Iterator[Line]:
    """Connect to a judged address of the host; closed afterwards, cut at the deadline at the latest.

    What goes wrong inside is raised as OutgoingError (OutgoingTimeout past the deadline) with our own words.
    """
    deadline = time.monotonic() + seconds
    where = f"{host}:{port}"
    line = Line(_connected(host, port, reach, deadline), deadline)
    raw = line.sock
    timer = threading.Timer(line.left, _cut, (raw,))
    timer.daemon = True
    timer.start()
    try:
        yield line
    except OutgoingError:
        raise
    except ssl.SSLCertVerificationError as error:
        said = f"{where} has no certificate that this host trusts: {error.verify_message}"
        raise OutgoingError(said, hint="SSL_CERT_FILE names the certificates of an authority of your own") from None
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error, where, deadline, seconds) from None
    finally:
        timer.cancel()
        with suppress(OSError):
            line.sock.close()
        with suppress(OSError):
            raw.close()


def _broken(error: Exception, where: str, deadline: float, seconds: float) -> OutgoingError:
    if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
        return OutgoingTimeout(f"{where} did not answer within {seconds:.0f} seconds", hint="is it up, and is it fast?")
    said = redact(str(error)).strip()[:200] or "it broke off"
    return OutgoingError(f"{where}: {type(error).__name__}: {said}")


def _connected(host: str, port: int, reach: Reach, deadline: float) -> socket.socket:
    problem: OSError | None = None
    for address in addresses_of(host, port, reach=reach, deadline=deadline):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return socket.create_connection((address, port), timeout=left)
        except TimeoutError as error:
            problem = error
        except OSError as error:
            problem = error
    if problem is None or isinstance(problem, TimeoutError):
        raise OutgoingTimeout(f"{host}:{port} was not reached in time", hint="is it up, and does a firewall drop us?")
    raise OutgoingError(f"{host}:{port} was not reached: {problem.strerror or problem}", hint="is it up?")


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def tls_context() -> ssl.SSLContext:
    """Certificates and host names are checked, by the host's own list of authorities."""
    return ssl.create_default_context()


# ---------------------------------------------------------------- HTTP


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status and the beginning of the body, with what is no text replaced."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


def http_call(
    url: str,
    *,
    method: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    reach: Reach,
    seconds: float,
    answer_bytes_max: int = ANSWER_BYTES_MAX,
) -> HttpAnswer:
    """Call once and read the beginning of the answer. Raises OutgoingError, UsageError for a bad address."""
    parts = url_checked(url, reach=reach)
    assert parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with line_open(parts.hostname, port, reach=reach, seconds=seconds) as line:
        line.sock.settimeout(line.left)
        if parts.scheme == "https":
            line.sock = tls_context().wrap_socket(line.sock, server_hostname=parts.hostname)
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=line.left)
        connection.sock = line.sock
        connection.request(
            method, target, body=body, headers={"Host": parts.netloc, "User-Agent": "lastro", **(headers or {})}
        )
        response = connection.getresponse()
        line.check()
        text = _beginning(response, line, answer_bytes_max)
        told = {name.lower(): value for name, value in response.getheaders()}
        return HttpAnswer(response.status, text, told)


def _beginning(response: http.client.HTTPResponse, line: Line, most: int) -> str:
    data = b""
    while len(data) < most:
        piece = response.read1(most - len(data))
        line.check()
        if not piece:
            break
        data += piece
    return printable(data)


def printable(data: bytes, *, kept: Sequence[str] = ("\n", "\t")) -> str:
    """Bytes of a stranger as text that a terminal can show."""
    text = data.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in kept else "\ufffd" for c in text)
