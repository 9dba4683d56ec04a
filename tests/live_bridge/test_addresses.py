"""What a peer advertises: only plain addresses in allowed networks, looked up once; nothing that reaches this node's own ground."""

import asyncio
import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.peers.addresses import SPECIAL, Address, AddressError, Guard, parse, system_resolve

PUBLIC = "93.184.215.14"


class Names:
    """A resolver whose answers are written down; the last one stays."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(turns) for name, turns in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.answers:  # an IP address stands for itself
            ipaddress.ip_address(host)
            return [host]
        turns = self.answers[host]
        return turns.pop(0) if len(turns) > 1 else turns[0]


def guard(allow: Sequence[str], names: Names | None = None) -> Guard:
    return Guard(allow, most=10, timeout_s=1.0, resolve=names or Names())


def pin(guarded: Guard, url: str) -> str:
    return asyncio.run(guarded.pin(url)).ip


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://10.0.0.5:9000", Address("http", "10.0.0.5", 9000)),
        ("http://10.0.0.5:9000/", Address("http", "10.0.0.5", 9000)),
        ("https://node-1.example.org", Address("https", "node-1.example.org", 443)),
        ("http://node", Address("http", "node", 80)),
        ("http://[2606:4700::1]:9000", Address("http", "2606:4700::1", 9000)),
        ("http://[::ffff:10.0.0.5]:9000", Address("http", "::ffff:10.0.0.5", 9000)),
    ],
)
def test_a_plain_address_is_read(url: str, address: Address) -> None:
    assert parse(url)._replace(host="") == address._replace(host="")
    assert parse(url).host == address.host or ipaddress.ip_address(parse(url).host) == ipaddress.ip_address(address.host)
    assert parse(parse(url).url) == parse(url), "its one form means the same"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "http://",
            "http:///",
            "http://:9000",
            "//10.0.0.5",
            "10.0.0.5:9000",
            "http:10.0.0.5",
            "http:/10.0.0.5",
            "HTTP://10.0.0.5",
        ),
        *(
            "file:///etc/passwd",
            "ftp://10.0.0.5",
            "gopher://10.0.0.5",
            "unix:///run/docker.sock",
            "javascript:alert(1)",
            "ws://10.0.0.5",
        ),
        *(
            "http://user@10.0.0.5",
            "http://user:word@10.0.0.5",
            "http://10.0.0.5@169.254.169.254",
            "http://10.0.0.5:80@169.254.169.254/",
        ),
        *(
            "http://10.0.0.5/latest/meta-data",
            "http://10.0.0.5?x=1",
            "http://10.0.0.5#x",
            "http://10.0.0.5/..",
            "http://10.0.0.5\\@x",
        ),
        *(
            "http://10.0.0.5:0",
            "http://10.0.0.5:65536",
            "http://10.0.0.5:080",
            "http://10.0.0.5:-1",
            "http://10.0.0.5:9000:1",
            "http://a:",
        ),
        *("http://2130706433", "http://0x7f000001", "http://0x7f.0.0.1", "http://0177.0.0.1", "http://127.1", "http://127.0.0.01"),
        *(
            "http://127.0.0.0x1",
            "http://0",
            "http://0x",
            "http://1.2.3.4.5",
            "http://256.0.0.1",
            "http://example.1",
            "http://10.0.0.5.",
        ),
        *(
            "http://[::1",
            "http://::1",
            "http://[]",
            "http://[::1%25eth0]",
            "http://[fe80::1%eth0]",
            "http://[1.2.3.4]x",
            "http://[:::]",
        ),
        *(
            "http://-a.org",
            "http://a-.org",
            "http://a..org",
            "http://.org",
            "http://a_b.org",
            "http://exämple.org",
            "http://\uff11\uff12\uff17.0.0.1",
        ),
        *(
            "http://a b.org",
            "http://a\n.org",
            "http://a.org\r\nHost: x",
            "http://a.org\0",
            " http://a.org",
            "http://a.org ",
            "http://%31.org",
        ),
        *(f"http://{'a' * 64}.org", f"http://{'a.' * 120}org", "http://a.org:8\u0660"),
    ],
)
def test_what_is_not_a_plain_address_is_refused(url: str) -> None:
    with pytest.raises(AddressError, match="address"):
        parse(url)
    with pytest.raises(AddressError, match="address"):
        guard(["0.0.0.0/0", "::/0", "127.0.0.0/8"]).check(url)


@given(st.text(max_size=40) | st.from_regex(r"https?://[\[\]0-9a-fx.:@/-]{0,30}", fullmatch=True))
def test_no_text_is_misread(url: str) -> None:
    try:
        address = parse(url)
    except AddressError as error:
        assert "address" in str(error)
        return
    assert address.scheme in {"http", "https"} and 0 < address.port < 65536
    assert not set(address.host) & set("@/?#\\% []")
    if address.host.replace(".", "").isdecimal():
        assert str(ipaddress.IPv4Address(address.host)) == address.host


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1:9000",
            "http://127.8.8.8",
            "http://0.0.0.0:9000",
            "http://169.254.169.254",
            "http://192.168.0.1",
            "http://172.17.0.1",
        ),
        *(
            "http://10.0.1.5",
            "http://100.100.100.200",
            "http://224.0.0.1",
            "http://255.255.255.255",
            f"http://{PUBLIC}",
            "http://[::1]:9000",
        ),
        *(
            "http://[::]:9000",
            "http://[::ffff:127.0.0.1]",
            "http://[::ffff:7f00:1]",
            "http://[::ffff:169.254.169.254]",
            "http://[fe80::1]",
        ),
        *(
            "http://[::127.0.0.1]",
            "http://[64:ff9b::127.0.0.1]",
            "http://[2002:7f00:1::]",
            "http://[fd00:ec2::254]",
            "http://[2606:4700::1]",
        ),
    ],
)
def test_an_address_outside_the_allowed_networks_is_refused(url: str) -> None:
    names = Names()
    narrow = guard(["10.0.0.0/24"], names)
    with pytest.raises(AddressError, match=r"in no allowed network; add one to peers\.allow"):
        narrow.check(url)
    with pytest.raises(AddressError, match="in no allowed network"):
        pin(narrow, url)
    assert names.asked == [], "an IP address is refused without a look-up"
    assert pin(narrow, "http://10.0.0.5:9000") == "10.0.0.5"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1",
            "http://169.254.169.254",
            "http://10.0.0.5",
            "http://192.168.1.1",
            "http://0.0.0.0",
            "http://100.64.0.1",
        ),
        *("http://224.0.0.1", "http://[::1]", "http://[::ffff:127.0.0.1]", "http://[::ffff:10.0.0.1]", "http://[fd00:ec2::254]"),
        *("http://[fe80::1]", "http://[64:ff9b::a9fe:a9fe]", "http://[2002:a9fe:a9fe::1]", "http://[::7f00:1]"),
    ],
)
def test_to_allow_the_whole_internet_allows_nothing_special(url: str) -> None:
    wide = guard(["0.0.0.0/0", "::/0", "128.0.0.0/1", "160.0.0.0/4", "169.0.0.0/8", "2000::/3"])
    with pytest.raises(AddressError, match="in no allowed network"):
        wide.check(url)
    assert pin(wide, f"http://{PUBLIC}") == PUBLIC
    assert pin(wide, "http://[2606:4700::1]") == "2606:4700::1"


def test_a_special_network_is_allowed_by_its_own_entry() -> None:
    local = guard(["127.0.0.0/8", "::1/128", "192.168.7.0/24"])
    assert [pin(local, f"http://{host}:9000") for host in ("127.0.0.1", "[::1]", "192.168.7.9")] == [
        "127.0.0.1",
        "::1",
        "192.168.7.9",
    ]
    assert pin(local, "http://[::ffff:127.0.0.1]:9000") == "127.0.0.1", "and connected to as what it is"
    for url in ("http://192.168.8.9", "http://[::2]", "http://[::ffff:192.168.8.9]"):
        with pytest.raises(AddressError):
            local.check(url)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_only_what_lies_in_an_entry_is_ever_allowed(start: int, length: int, ip: int) -> None:
    entry = ipaddress.ip_network((start >> (32 - length) << (32 - length), length))
    address = ipaddress.IPv4Address(ip)
    try:
        guard([str(entry)]).check(f"http://{address}")
    except AddressError:
        return
    assert address in entry
    assert all(entry.subnet_of(special) for special in SPECIAL if special.version == 4 and address in special)


def test_every_special_address_that_python_knows_is_on_the_list() -> None:
    for text in (
        "0.1.2.3",
        "10.1.1.1",
        "100.64.3.3",
        "127.0.0.1",
        "169.254.0.1",
        "172.31.0.1",
        "192.0.0.1",
        "192.168.1.1",
        "198.19.0.1",
    ):
        assert not ipaddress.ip_address(text).is_global and any(ipaddress.ip_address(text) in network for network in SPECIAL)
    for network in (*ipaddress._IPv4Constants._private_networks, *ipaddress._IPv6Constants._private_networks):
        if network != ipaddress.ip_network("::ffff:0:0/96"):  # seen as the IPv4 address that it holds
            assert any(network.version == special.version and network.subnet_of(special) for special in SPECIAL), network


def test_an_entry_that_is_no_network_is_named() -> None:
    for entry in ("10.0.0.5/24", "10.0.0", "local", "::1/129"):
        with pytest.raises(AddressError, match=r"peers\.allow: .* is not a network in CIDR form"):
            guard([entry])


def test_a_name_that_stands_for_a_forbidden_address_is_refused() -> None:
    allowed = guard(
        ["10.0.0.0/24"], Names(evil_org=[["169.254.169.254"]], mapped_org=[["::ffff:127.0.0.1"]], scoped_org=[["fe80::1%eth0"]])
    )
    for name in ("evil.org", "mapped.org", "scoped.org"):
        allowed.check(f"http://{name}")
        with pytest.raises(AddressError, match="in no allowed network"):
            pin(allowed, f"http://{name}")


def test_one_forbidden_address_among_several_spoils_a_name() -> None:
    mixed = guard(["10.0.0.0/24"], Names(evil_org=[["10.0.0.5", "127.0.0.1"]], good_org=[["10.0.0.5", "10.0.0.6"]]))
    with pytest.raises(AddressError, match=r"127\.0\.0\.1 is in no allowed network"):
        pin(mixed, "http://evil.org")
    assert pin(mixed, "http://good.org") == "10.0.0.5"


def test_a_name_is_looked_up_once_and_rebinding_it_changes_nothing() -> None:
    names = Names(evil_org=[["10.0.0.5"], ["169.254.169.254"]])
    allowed = guard(["10.0.0.0/24"], names)
    assert [pin(allowed, "http://evil.org:9000") for _ in range(100)] == ["10.0.0.5"] * 100
    assert names.asked == ["evil.org"]


def test_a_name_that_is_looked_up_anew_is_checked_anew() -> None:
    names = Names(evil_org=[["10.0.0.5"], ["10.0.0.6"], ["169.254.169.254"]])
    allowed = guard(["10.0.0.0/24"], names)
    found = [pin(allowed, "http://evil.org")]
    allowed.unpin("http://evil.org")
    found.append(pin(allowed, "http://evil.org"))
    allowed.unpin("http://evil.org")
    allowed.unpin("http://never.seen.org")
    with pytest.raises(AddressError):
        pin(allowed, "http://evil.org")
    assert found == ["10.0.0.5", "10.0.0.6"]


def test_a_name_without_an_answer_is_an_error_with_its_name() -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise OSError(-2, "Name or service not known")

    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    for resolve, text in (
        (nowhere, "Name or service not known"),
        (never, "no answer in time"),
        (Names(a_org=[[]]), "has no IP address"),
    ):
        with pytest.raises(AddressError, match=text):
            pin(Guard(["10.0.0.0/24"], most=10, timeout_s=0.01, resolve=resolve), "http://a.org")


def test_pins_are_bounded() -> None:
    names = Names(**{f"n{k}": [["10.0.0.5"]] for k in range(30)})
    allowed = guard(["10.0.0.0/24"], names)
    for k in range(30):
        pin(allowed, f"http://n{k}")
    assert len(allowed._pins) == 10
    pin(allowed, "http://n29")
    assert len(names.asked) == 30


def test_the_systems_resolver_is_asked_by_default() -> None:
    assert asyncio.run(system_resolve("127.0.0.1", 80)) == ["127.0.0.1"]
    local = Guard(["127.0.0.0/8", "::1/128"], most=1, timeout_s=5.0)
    assert pin(local, "http://localhost:9000") in {"127.0.0.1", "::1"}
    with pytest.raises(AddressError, match="in no allowed network"):
        pin(Guard(["10.0.0.0/8"], most=1, timeout_s=5.0), "http://localhost:9000")
