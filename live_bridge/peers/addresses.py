"""Addresses that peers advertise: one plain form, a network that the operator has allowed, resolved once and then pinned.

A peer must not be able to make this node talk to what only this node can reach. Redirects are never
followed: the HTTP client knows none.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> IP addresses as text; OSError when there are none."""

LONGEST = 200
PORTS = {"http": 80, "https": 443}
FORM = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([1-9][0-9]{0,4}))?/?", re.ASCII)
LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32"),
        *("2002::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)
"""Special-purpose networks (IANA registries): allowed only by an entry that lies within them, never by 0.0.0.0/0 or ::/0."""


class AddressError(ValueError):
    """An address is not one that this node connects to; the text names it, the rule and the way out."""


class Address(NamedTuple):
    """Where a peer says it can be reached."""

    scheme: str
    host: str  # a name, or an IP address without brackets
    port: int

    @property
    def url(self) -> str:
        """The one way to write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Pinned(NamedTuple):
    """An address, and the IP address that alone it stands for here."""

    url: str
    ip: str


def parse(url: str) -> Address:
    """Read http://HOST:PORT or https://HOST:PORT; no user, path, query, or number in disguise.

    errors   AddressError
    """
    match = FORM.fullmatch(url) if len(url) <= LONGEST else None
    if match is None:
        raise AddressError(f"address {url[:LONGEST]!r}: must be http://HOST:PORT or https://HOST:PORT in lower case")
    scheme, host, port = match[1], match[2], int(match[3] or PORTS[match[1]])
    if port > 65535:
        raise AddressError(f"address {url!r}: the port must be at most 65535")
    if host.startswith("[") or NUMBER.fullmatch(host.rpartition(".")[2]):
        host = str(_literal(host.strip("[]"), url))
    elif not all(LABEL.fullmatch(label) for label in host.split(".")):
        raise AddressError(f"address {url!r}: {host!r} is neither a host name nor an IP address")
    return Address(scheme, host, port)


def _literal(text: str, url: str) -> IpAddress:
    """Read an IP address in its usual form: 127.1, 0x7f000001, 0177.0.0.1 and 2130706433 are not."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise AddressError(f"address {url!r}: {text!r} is not an IP address in its usual form") from None


def _plain(ip: IpAddress) -> IpAddress:
    """See an IPv4 address behind its IPv6 form."""
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver for the IP addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Guard:
    """Says to which addresses this node connects, and to which IP address for each."""

    def __init__(self, allow: Sequence[str], most: int, timeout_s: float, resolve: Resolve = system_resolve) -> None:
        """Take the allowed networks.

        allow       CIDRs, as peers.allow in the settings
        most        names remembered at once; the one pinned first is forgotten first
        timeout_s   s on the wall for one look-up
        errors      AddressError naming an entry that is no network
        """
        self._allow = [_network(entry) for entry in allow]
        self._most = most
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._pins: dict[str, Pinned] = {}

    def check(self, url: str) -> Address:
        """Refuse a malformed address and a forbidden IP address; names are looked up by `pin` alone.

        errors   AddressError
        """
        address = parse(url)
        if ":" in address.host or NUMBER.fullmatch(address.host.rpartition(".")[2]):
            self._admit(address.host, url)
        return address

    async def pin(self, url: str) -> Pinned:
        """Look an address up once, and give the same IP address from then on.

        A name of which *any* address is forbidden is refused.
        errors   AddressError
        """
        known = self._pins.get(url)
        if known is not None:
            return known
        address = self.check(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._resolve(address.host, address.port)
        except OSError as error:  # TimeoutError is one
            raise AddressError(f"address {url!r}: {address.host} cannot be resolved: {str(error) or 'no answer in time'}") from None
        if not answers:
            raise AddressError(f"address {url!r}: {address.host} has no IP address")
        admitted = [self._admit(answer, url) for answer in answers]
        pinned = Pinned(address.url, str(admitted[0]))
        while len(self._pins) >= self._most:
            del self._pins[next(iter(self._pins))]
        self._pins[url] = pinned
        return pinned

    def unpin(self, url: str) -> None:
        """Forget what `url` stood for: the next `pin` looks it up, and checks it, anew."""
        self._pins.pop(url, None)

    def _admit(self, text: str, url: str) -> IpAddress:
        ip = _plain(_literal(text, url))
        special = [network for network in SPECIAL if _holds(network, ip)]
        for entry in self._allow:
            if _holds(entry, ip) and all(_within(entry, network) for network in special):
                return ip
        raise AddressError(f"address {url!r}: {ip} is in no allowed network; add one to peers.allow if it is a peer's")


def _network(entry: str) -> Network:
    try:
        return ipaddress.ip_network(entry)
    except ValueError as error:
        raise AddressError(f"peers.allow: {entry!r} is not a network in CIDR form: {error}") from None


def _holds(network: Network, ip: IpAddress) -> bool:
    return network.version == ip.version and ip in network


def _within(entry: Network, special: Network) -> bool:
    """Whether `entry` lies in `special`: both hold the same address, so one lies in the other."""
    return entry.prefixlen >= special.prefixlen
