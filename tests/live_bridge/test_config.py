"""Settings of a node: defaults, a file, the command line, in this order; every slip is named with place, key, rule and value."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from live_bridge import config
from live_bridge.config import (
    NodeSettings,
    defaults,
    documented,
    kinds,
    leaves,
    load_yaml,
    node_settings,
    profile_named,
    terms_named,
)
from live_bridge.renewal import AT_ONCE, later
from settings import SettingsError

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "conf" / "live" / "node.yaml"


def settings(**spoken: Any) -> NodeSettings:
    return node_settings(None, {key.replace("__", "."): value for key, value in spoken.items()})


def slips(spoken: dict[str, Any], file: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        node_settings(file, spoken)
    return str(refused.value).splitlines()


def test_without_a_word_the_defaults_are_in_force() -> None:
    found = settings()
    assert (found.listen, found.speed, found.backend.kind, found.ledger.engine) == ("127.0.0.1:9000", 1.0, "vllm", "sqlite")
    assert found.address() == ("127.0.0.1", 9000)


def test_types_and_defaults_name_the_same_settings() -> None:
    assert set(kinds()) == set(defaults())


def test_a_file_outdoes_the_defaults_and_the_command_line_outdoes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("slo_s: 30\ncontrol_s: 2\nbackend: {url: 'http://a:1', stale_s: 9}\n")
    found = node_settings(file, {"control_s": 3, "backend.stale_s": 8})
    assert (found.slo_s, found.control_s, found.backend.url, found.backend.stale_s) == (30.0, 3.0, "http://a:1", 8.0)
    assert found.backend.connect_s == settings().backend.connect_s


def test_a_file_that_says_nothing_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("# nothing yet\n")
    assert node_settings(file, {}) == settings()


def test_to_read_settings_changes_no_default() -> None:
    before = defaults()
    settings(backend__url="http://b:2", join=["http://a:1"])
    assert defaults() == before


@pytest.mark.parametrize(
    ("spoken", "slip"),
    [
        ({"polcy": "paper"}, "command line: polcy is not a setting; did you mean policy?"),
        ({"backend.ulr": "x"}, "command line: backend.ulr is not a setting; did you mean url?"),
        ({"bakend.url": "x"}, "command line: bakend.url is not a setting; did you mean backend?"),
        ({"policy.name": "x"}, "command line: policy.name is not a setting; "),
        ({"slo_s": "fast"}, "command line: slo_s must be a number in "),
        ({"slo_s": 0}, "command line: slo_s must be a number in "),
        ({"slo_s": None}, "command line: slo_s must be a number in "),
        ({"slo_s": True}, "command line: slo_s must be a number in "),
        ({"peers.retries": 1.5}, "command line: peers.retries must be an integer in [0, 5] executors, got 1.5"),
        ({"peers.most": 1001}, "command line: peers.most must be an integer in [1, 1000] peers, got 1001"),
        ({"backend.kind": "vlm"}, "command line: backend.kind must be one of vllm, sglang, openai, emulated, got 'vlm'"),
        ({"http": "httpx"}, "command line: http must be one of own, aiohttp, got 'httpx'"),
        ({"join": "http://a:1"}, "command line: join must be a list, "),
        ({"join": [1]}, "command line: join[0] must be text, got 1"),
        ({"duels.judge": "yes"}, "command line: duels.judge must be true or false, got 'yes'"),
        ({"log.level": "loud"}, "command line: log.level must be one of debug, info, warning, error, got 'loud'"),
        ({"backend": "x"}, "command line: backend must be a mapping, got 'x'"),
        ({"speed": 2}, "command line: speed must be 1 with a real engine (backend.kind is vllm), got 2"),
    ],
)
def test_a_slip_on_the_command_line_is_named(spoken: dict[str, Any], slip: str) -> None:
    [line] = slips(spoken)
    assert line.startswith(slip)


def test_a_slip_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("backend: {stale_s: never}\n")
    [line] = slips({}, file)
    assert line.startswith(f"{file}: backend.stale_s must be a number in ")


def test_all_slips_are_named_at_once_each_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("slo_s: fast\ncontrol_s: 1\n")
    lines = slips({"tick_s": -1, "loop": "trio"}, file)
    assert [line.partition(" must")[0] for line in lines] == [f"{file}: slo_s", "command line: tick_s", "command line: loop"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [("a: [1", "is not YAML: "), ("- 1\n", "must be a mapping of settings"), ("just words\n", "must be a mapping of settings")],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(text)
    assert slips({}, file)[0].startswith(f"{file}: {rule}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read: "):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"binary\.yaml: cannot be read: "):
        load_yaml(tmp_path / "binary.yaml")


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/trace']\n")
    assert "is not YAML" in slips({}, file)[0]
    assert not (tmp_path / "trace").exists()


# -- addresses


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9000", ("::1", 9000)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
    ],
)
def test_where_a_node_listens_is_a_host_and_a_port(listen: str, address: tuple[str, int]) -> None:
    assert settings(listen=listen).address() == address


@pytest.mark.parametrize("listen", ["", "9000", ":9000", "host", "host:", "host:x", "host:65536", "host:-1", "host:9 0"])
def test_where_a_node_cannot_listen_is_refused(listen: str) -> None:
    [line] = slips({"listen": listen})
    assert line == f"command line: listen must be HOST:PORT, got {listen!r}"


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_who_listens_everywhere_says_where_peers_reach_it(host: str) -> None:
    [line] = slips({"listen": f"{host}:9000"})
    assert line.startswith("command line: advertise must be a URL at which peers reach this node")
    assert settings(listen=f"{host}:9000", advertise="http://10.0.0.1:9000").advertise == "http://10.0.0.1:9000"


URLS = ["http://127.0.0.1:8000", "https://example.org", "http://[::1]:9000", "http://host:1/v1", "http://a_b.c-d:65535/"]
NO_URLS = [
    "",
    "localhost:8000",
    "ftp://a",
    "http://",
    "http://a:0",
    "http://a:65536",
    "http://a b",
    "http://u@a",
    "http://a?b",
    "http://é",
]


@pytest.mark.parametrize("key", ["backend.url", "ledger.url", "advertise"])
def test_a_url_is_one_or_is_refused_with_its_key(key: str) -> None:
    for url in URLS:
        assert node_settings(None, {key: url})
    for url in NO_URLS:
        [line] = slips({key: url})
        assert line == f"command line: {key} must be http://HOST[:PORT] or https://HOST[:PORT], got {url!r}"


def test_every_url_to_join_is_looked_at() -> None:
    assert settings(join=URLS).join == URLS
    assert slips({"join": [URLS[0], "nonsense"]})[0].endswith(
        "join must be http://HOST[:PORT] or https://HOST[:PORT], got 'nonsense'"
    )


@pytest.mark.parametrize("network", ["", "a b", "é", "a/b", "x" * 65, "a\n"])
def test_a_network_has_a_plain_name(network: str) -> None:
    assert slips({"network": network})[0].startswith("command line: network must be 1 to 64 of A-Z a-z 0-9 . _ -, got ")
    assert settings(network="Berlin-1.test_net").network == "Berlin-1.test_net"


# -- what stands elsewhere


def test_terms_and_profiles_are_found_by_name_or_file(tmp_path: Path) -> None:
    assert terms_named("paper").duel_rate == 0.1
    values = yaml.safe_load((ROOT / "conf" / "market" / "paper.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"duel_rate": 0.5}))
    assert terms_named(str(tmp_path / "mine.yaml")).duel_rate == 0.5
    assert profile_named("l4_qwen3_8b").kv_blocks > 0


def test_terms_that_a_node_cannot_keep_are_refused_by_name() -> None:
    with pytest.raises(SettingsError) as refused:
        terms_named("released")
    assert str(refused.value).splitlines() == [
        "conf/market/released.yaml: dispatch_s must be 0 on a node, got 0.5: it is a quirk to be simulated only",
        "conf/market/released.yaml: escrow must be 1 on a node, got 0: it is a quirk to be simulated only",
        "conf/market/released.yaml: duellists_judge must be 0 on a node, got 1: it is a quirk to be simulated only",
        "conf/market/released.yaml: judges_least must be 1 on a node, got 3: it is a quirk to be simulated only",
    ]


def test_terms_that_are_not_there_or_not_whole_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"conf/market: has no papr\.yaml; did you mean paper\?"):
        terms_named("papr")
    (tmp_path / "half.yaml").write_text("duel_rate: 2\n")
    with pytest.raises(SettingsError) as refused:
        terms_named(str(tmp_path / "half.yaml"))
    assert f"{tmp_path}/half.yaml: duel_rate must be a share in [0, 1], got 2" in str(refused.value)
    assert f"{tmp_path}/half.yaml: judges is missing" in str(refused.value)


# -- what is said of it


def test_every_setting_is_documented_with_its_default() -> None:
    listed = {key: value for key, value, _ in documented()}
    flat = dict(leaves(defaults()))
    assert list(listed) == list(flat)
    for key, value in listed.items():
        assert yaml.safe_load(value) == flat[key], key


def test_every_setting_says_what_it_means_and_times_say_their_unit() -> None:
    for key, _, meaning in documented():
        assert len(meaning) > 5, f"{key} is not explained"
        if key.endswith("_s") and key != "limits.body_s":
            assert re.match(r"s[ ,]", meaning), f"{key}: {meaning} does not begin with its unit"


@given(
    st.recursive(
        st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1), max_leaves=8
    )
)
def test_leaves_are_all_values_by_their_full_keys(tree: Any) -> None:
    if not isinstance(tree, dict):
        return
    for key, value in leaves(tree):
        inner: Any = tree
        for part in key.split("."):
            inner = inner[part]
        assert inner == value and not isinstance(value, dict)


def test_what_cannot_change_while_a_node_runs_is_named() -> None:
    assert later(settings(), settings()) == ""
    for key in AT_ONCE:
        assert key in dict(leaves(defaults())), f"{key} is no setting"
    assert later(settings(), settings(policy="paper", log__level="debug", duels__judge=False)) == ""
    changed = settings(policy="paper", slo_s=3, backend__url="http://b:1", tls__key="k")
    assert later(settings(), changed) == "slo_s, backend.url, tls.key"


def test_the_defaults_of_the_package_are_those_of_the_repository() -> None:
    assert defaults() == yaml.safe_load(DEFAULT.read_text())
    assert config.DEFAULTS == "conf/live/node.yaml"
