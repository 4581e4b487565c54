"""Calls to addresses that people typed in, against real receivers: judged, pinned, bounded."""

import ipaddress
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.addresses import address_refusal
from core.outgoing import OutgoingError, OutgoingRefused, OutgoingTimeout, Reach, http_call, url_checked
from engine.errors import UsageError
from tests.services.receiver import LOOPBACK, Receiver, certificate, receiver

NOT_PUBLIC = (
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1", "0.0.0.0", "255.255.255.255",
    "169.254.169.254", "224.0.0.1", "240.0.0.1", "::1", "::", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::10.0.0.1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "2002:a00:1::", "2001:0:a00:1::",
    "100.100.100.200", "192.0.0.192",
)  # fmt: skip
PUBLIC = ("1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101")
NEVER = (
    "169.254.169.254",
    "fe80::1",
    "fd00:ec2::254",
    "0.0.0.0",
    "224.0.0.1",
    "100.100.100.200",
    "::ffff:169.254.169.254",
)


@pytest.fixture
def target(settings: Any) -> Iterator[Receiver]:
    settings.LASTRO_OUTGOING_ALLOW = LOOPBACK
    with receiver() as server:
        yield server


def _post(url: str, seconds: float = 5.0, reach: Reach = Reach.INTERNET) -> Any:
    return http_call(url, method="POST", body=b"{}", reach=reach, seconds=seconds)


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_only_public_addresses_are_called(text: str) -> None:
    """Goal: no way into the house; judge every sort of address that is none of the internet's."""
    address = ipaddress.ip_address(text)
    assert address_refusal(address, public_only=True, allowed=())
    assert not address_refusal(address, public_only=True, allowed=[ipaddress.ip_network(_carried(text))])


def _carried(text: str) -> str:
    """What an allow-list has to name: the IPv4 address, where an IPv6 one carries it."""
    carried = {"::ffff:10.0.0.1": "10.0.0.1", "::ffff:127.0.0.1": "127.0.0.1", "::10.0.0.1": "10.0.0.1"}
    return carried.get(text) or {"64:ff9b::a00:1": "10.0.0.1", "64:ff9b::a9fe:a9fe": "169.254.169.254"}.get(text, text)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_pass(text: str) -> None:
    """Goal: the guard is in nobody's way; judge ordinary addresses."""
    assert not address_refusal(ipaddress.ip_address(text), public_only=True, allowed=())


@pytest.mark.parametrize("text", NEVER)
def test_credentials_are_out_of_reach_for_hooks_too(text: str) -> None:
    """Goal: what may call the house may not call its cloud's metadata; judge those."""
    assert address_refusal(ipaddress.ip_address(text), public_only=False, allowed=())
    assert not address_refusal(ipaddress.ip_address("10.1.2.3"), public_only=False, allowed=())


def test_literals_are_refused_before_anything_is_saved(settings: Any) -> None:
    """Goal: a mistake shows when it is typed; check addresses of all bad sorts."""
    settings.LASTRO_OUTGOING_ALLOW = ()
    for url in ("http://127.0.0.1/", "https://[::1]/", "https://[fd00::1]:8/", "http://0x7f000001.nip/\n", "ftp://x/",
                "https://u:p@x.example/", "https://x.example:99999/", "https://" + "x" * 3000, "https:///x", "https://x y/"):  # fmt: skip
        with pytest.raises(UsageError):
            url_checked(url, reach=Reach.INTERNET)


@pytest.mark.parametrize(
    "url",
    [
        "htp://hooks.example/TOKENS/x",
        "file:///TOKENS",
        "https://me:TOKENS@x/",
        "TOKENS@x/y",
        "x/TOKENS",
        "ftp:x?TOKENS",
    ],
)
def test_a_refusal_repeats_no_secret(url: str, settings: Any) -> None:
    """Goal: tokens stand in addresses, and refusals in logs; refuse addresses with one in every place."""
    settings.LASTRO_OUTGOING_ALLOW = ()
    with pytest.raises(UsageError) as refused:
        url_checked(url, reach=Reach.INTERNET)
    assert "TOKENS" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_whatever_leads_to_this_host_is_refused(settings: Any, host: str) -> None:
    """Goal: spellings do not help; call a receiver here by many names without an allow-list."""
    settings.LASTRO_OUTGOING_ALLOW = ()
    with receiver() as server:
        with pytest.raises((OutgoingRefused, OutgoingError, UsageError)):
            _post(f"http://{host}:{server.server_port}/")
        assert server.heard == []


def test_a_name_that_changes_its_mind_is_called_where_it_was_judged(
    target: Receiver, monkeypatch: Any, settings: Any
) -> None:
    """Goal: DNS rebinding leads nowhere; a resolver that says something else the second time."""
    answers = [["127.0.0.1"], ["10.9.9.9"], ["169.254.169.254"]]
    asked = []
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "rebind.example":
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://rebind.example:{target.server_port}/"
    assert _post(url).status == 200
    assert asked == ["rebind.example"]  # Once: what was judged is what was called.
    assert target.heard[0].headers["host"] == f"rebind.example:{target.server_port}"
    for _ in range(2):
        with pytest.raises(OutgoingRefused, match="leads to"):
            _post(url)
    answers.append(["127.0.0.1", "192.168.0.1"])
    with pytest.raises(OutgoingRefused, match=r"192\.168\.0\.1"):
        _post(url)  # One bad address among good ones is enough.
    assert len(target.heard) == 1


def test_redirects_are_not_followed(target: Receiver, settings: Any) -> None:
    """Goal: an answer does not lead us elsewhere; a redirect to this very receiver stays an answer."""
    target.answers, target.location = [302], f"{target.url}/elsewhere"
    assert _post(target.url).status == 302
    assert [each.path for each in target.heard] == ["/hook"]


def test_whoever_drips_is_cut_off(target: Receiver) -> None:
    """Goal: a deadline is one for all of it; a receiver that sends a byte of its header now and then."""
    target.drip_seconds = 0.1
    began = time.monotonic()
    with pytest.raises(OutgoingTimeout, match="within 1 seconds"):
        _post(target.url, seconds=1.0)
    assert time.monotonic() - began < 5


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: Any, settings: Any) -> None:
    """Goal: a name server that is away holds up nothing; one that sleeps."""
    settings.LASTRO_OUTGOING_ALLOW = LOOPBACK
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3) or [])
    began = time.monotonic()
    with pytest.raises(OutgoingTimeout, match="not resolved"):
        _post("http://slow.example/", seconds=0.3)
    assert time.monotonic() - began < 2


def test_an_answer_is_read_up_to_a_bound(target: Receiver) -> None:
    """Goal: nobody fills our memory, or a terminal with escapes; a megabyte, and an escape sequence."""
    assert "\x1b" not in _post(target.url).text
    target.endless = True
    assert len(_post(target.url).text) <= 16 << 10


def test_certificates_are_checked(target: Receiver, tmp_path: Path, monkeypatch: Any) -> None:
    """Goal: nobody stands in between; a self-signed receiver, one of another name, and one that is trusted."""
    ours, pem = certificate(tmp_path, "127.0.0.1")
    other, other_pem = certificate(tmp_path, "other.example")
    target.socket = ours.wrap_socket(target.socket, server_side=True)
    url = target.url.replace("http:", "https:")
    with pytest.raises(OutgoingError, match="no certificate that this host trusts"):
        _post(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    assert _post(url).status == 200
    with receiver() as second:
        second.socket = other.wrap_socket(second.socket, server_side=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(other_pem))
        with pytest.raises(OutgoingError, match="no certificate"):
            _post(second.url.replace("http:", "https:"))


def test_a_closed_port_is_told_in_our_words(settings: Any) -> None:
    """Goal: the operator knows what to look at; call a port that nobody listens on."""
    settings.LASTRO_OUTGOING_ALLOW = LOOPBACK
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OutgoingError, match="was not reached: Connection refused"):
        _post(f"http://127.0.0.1:{port}/")
