"""Which addresses nothing may be sent to. Pure: used by processes that know neither Django nor the catalogue, too."""

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")


def address_refusal(address: Address, *, public_only: bool, allowed: Iterable[Network]) -> str:
    """Why nothing may be sent to the address, as the end of a sentence; empty when it may.

    `allowed` outranks everything. Metadata services, link-local, multicast and unspecified addresses are always refused
    without it, with `public_only` also whatever is not reached through the internet: private, loopback, CGNAT (RFC
    6598), unique local, documentation, benchmarks, tunnels (6to4, Teredo). IPv6 addresses that only carry an IPv4 one
    (mapped, compatible, NAT64) are judged by that.
    """
    plain = _unwrapped(address)
    if any(plain in network for network in allowed if network.version == plain.version):
        return ""
    if plain in _METADATA or plain.is_link_local:
        return "is where nothing must call: link-local addresses hand out credentials"
    if plain.is_multicast or plain.is_unspecified or (plain.is_reserved and not plain.is_loopback):
        return "is where nothing must call: it is no address of a single host"
    if not public_only:
        return ""
    tunnelled = isinstance(plain, ipaddress.IPv6Address) and bool(
        plain.sixtofour or plain.teredo or plain.is_site_local
    )
    if tunnelled or not plain.is_global:
        return "is not a public address"
    return ""


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only carries it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    carries = address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if carries else address
