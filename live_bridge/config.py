"""Settings of a node: conf/live/node.yaml, a file of the user's, and the command line, in this order. Values live in YAML."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml

from market.profile import Profile
from market.terms import Positive, Range, Seconds, Terms
from settings import SettingsError, Slip, did_you_mean, read

DEFAULTS = "conf/live/node.yaml"
Count = Annotated[int, Range(0, 1_000_000, "")]
NETWORK = re.compile(r"[A-Za-z0-9._-]{1,64}")
URL = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(?:/[!-~]*)?", re.ASCII)
Some = Annotated[int, Range(1, 1_000_000, "")]


@dataclass(frozen=True)
class BackendSettings:
    """The engine behind a node."""

    kind: Literal["vllm", "sglang", "openai", "emulated"]
    url: str
    key_file: str | None
    metrics_s: Positive
    stale_s: Positive
    connect_s: Positive
    first_byte_s: Positive
    launch: str | None
    interpreter: str
    launch_args: list[str | int | float]
    seed: Count


@dataclass(frozen=True)
class UserSettings:
    """Who may ask."""

    keys_file: str | None
    default_max_tokens: Some


@dataclass(frozen=True)
class PeerSettings:
    """Other nodes."""

    allow: list[str]
    message_ttl_s: Positive
    most: Annotated[int, Range(1, 1000, "peers")]
    retries: Annotated[int, Range(0, 5, "executors")]


@dataclass(frozen=True)
class LedgerSettings:
    """Where money is kept."""

    url: str | None
    engine: Literal["sqlite", "memory", "postgres"]
    dsn: str | None
    hold_ttl_s: Positive


@dataclass(frozen=True)
class DuelSettings:
    """A node's part in duels."""

    judge: bool
    by: Literal["letters", "likelihood"]
    deadline_s: Positive


@dataclass(frozen=True)
class LimitSettings:
    """What a client may send, and how slowly."""

    header_kb: Some
    body_mb: Some
    header_s: Positive
    body_s: Positive
    keepalive_s: Positive
    connections: Some
    drain_s: Seconds


@dataclass(frozen=True)
class TlsSettings:
    """Certificates."""

    certificate: str | None
    key: str | None
    peer_ca: str | None


@dataclass(frozen=True)
class LogSettings:
    """Structured logs: never a prompt, an answer or a key."""

    level: Literal["debug", "info", "warning", "error"]
    file: str | None


@dataclass(frozen=True)
class JournalSettings:
    """What a node keeps of what it did."""

    keep_days: Positive | None


@dataclass(frozen=True)
class NodeSettings:
    """One node; units and defaults stand in conf/live/node.yaml."""

    name: str | None
    home: str
    listen: str
    advertise: str | None
    join: list[str]
    network: str
    market: str
    policy: str
    profile: str
    slo_s: Positive
    control_s: Positive
    tick_s: Positive
    speed: Annotated[float, Range(0.01, 1000.0, "market seconds per second")]
    http: Literal["own", "aiohttp"]
    loop: Literal["uvloop", "asyncio"]
    backend: BackendSettings
    users: UserSettings
    peers: PeerSettings
    ledger: LedgerSettings
    duels: DuelSettings
    limits: LimitSettings
    tls: TlsSettings
    log: LogSettings
    journal: JournalSettings

    def __post_init__(self) -> None:
        if self.speed != 1.0 and self.backend.kind != "emulated":
            raise ValueError(f"speed must be 1 with a real engine (backend.kind is {self.backend.kind}), got {self.speed:g}")
        host, _ = self.address()
        if host in {"0.0.0.0", "::", "*"} and self.advertise is None:  # noqa: S104 - what is refused
            raise ValueError(f"advertise must be a URL at which peers reach this node, since it listens on {host}: all addresses")
        if not NETWORK.fullmatch(self.network):
            raise ValueError(f"network must be 1 to 64 of A-Z a-z 0-9 . _ -, got {self.network!r}")
        urls = [("backend.url", self.backend.url), ("ledger.url", self.ledger.url), *(("join", url) for url in self.join)]
        for key, url in [*urls, ("advertise", self.advertise)]:
            if url is not None and not _is_url(url):
                raise ValueError(f"{key} must be http://HOST[:PORT] or https://HOST[:PORT], got {url!r}")

    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"listen must be HOST:PORT, got {self.listen!r}")
        return host.strip("[]"), int(port)


def _is_url(text: str) -> bool:
    """Whether `text` is http://HOST[:PORT] or https://..., with a path at most."""
    match = URL.fullmatch(text)
    return match is not None and int(match[1] or 1) in range(1, 65536)


def defaults() -> dict[str, Any]:
    """The values of conf/live/node.yaml."""
    return _parse((resources.files("conf") / "live" / "node.yaml").read_text(encoding="utf-8"), DEFAULTS)


def node_settings(file: Path | None, spoken: Mapping[str, Any]) -> NodeSettings:
    """Merge defaults, `file` and `spoken` (full keys such as backend.url), and check all of it.

    errors   SettingsError naming the place that said it
    """
    values = defaults()
    places = {}
    if file is not None:
        for key, value in leaves(load_yaml(file)):
            places[key] = str(file)
            _put(values, key, value, str(file))
    for key, value in spoken.items():
        places[key] = "command line"
        _put(values, key, value, "command line")
    try:
        return read(NodeSettings, values, DEFAULTS)
    except SettingsError as error:
        raise SettingsError(*(Slip(_place(slip.key, places), slip.key, slip.rule) for slip in error.slips)) from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    errors   SettingsError
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(Slip(str(path), "", f"cannot be read: {error}")) from None
    return _parse(text, str(path))


SAFE = {"dispatch_s": 0.0, "escrow": 1, "duellists_judge": 0, "judges_least": 1}
"""Terms that only a simulated market may change: they stand for quirks of WWW.Serve's released code, which no node has."""


def terms_named(name: str) -> Terms:
    """The terms of a market by name in conf/market, or from a YAML file."""
    values, place = _named("market", name)
    terms = read(Terms, values, place)
    unsafe = {key: getattr(terms, key) for key, safe in SAFE.items() if getattr(terms, key) != safe}
    if unsafe:
        rule = "must be {0:g} on a node, got {1:g}: it is a quirk to be simulated only"
        raise SettingsError(*(Slip(place, key, rule.format(SAFE[key], got)) for key, got in unsafe.items()))
    return terms


def profile_named(name: str) -> Profile:
    """A serving profile by name in conf/serving, or from a YAML file."""
    values, place = _named("serving", name)
    return read(Profile, values, place)


def _named(group: str, name: str) -> tuple[dict[str, Any], str]:
    if name.endswith((".yaml", ".yml")):
        return load_yaml(Path(name)), name
    folder = resources.files("conf") / group
    known = sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise SettingsError(Slip(f"conf/{group}", "", f"has no {name}.yaml; {did_you_mean(name, known)}"))
    place = f"conf/{group}/{name}.yaml"
    return _parse((folder / f"{name}.yaml").read_text(encoding="utf-8"), place), place


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise SettingsError(Slip(place, "", f"is not YAML: {str(error).splitlines()[0]}")) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(Slip(place, "", "must be a mapping of settings"))
    return values


def value_of(key: str, text: str) -> Any:
    """Read the value of KEY=VALUE on a command line, as YAML has it.

    errors   SettingsError
    """
    try:
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        raise SettingsError(Slip("command line", key, f"must be a value as YAML has it, got {text!r}; quote it")) from None


def leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every setting by its full key, such as backend.url, in order."""
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        out += leaves(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return out


def _put(values: dict[str, Any], key: str, value: Any, place: str) -> None:
    *path, last = key.split(".")
    inner: Any = values
    for part in path:
        if not isinstance(inner.get(part), dict):
            raise SettingsError(Slip(place, key, f"is not a setting; {did_you_mean(part, inner)}"))
        inner = inner[part]
    if last not in inner:
        raise SettingsError(Slip(place, key, f"is not a setting; {did_you_mean(last, inner)}"))
    inner[last] = value


def _place(key: str, places: Mapping[str, str]) -> str:
    said = [place for spoken, place in places.items() if key in {"", spoken} or key.startswith((f"{spoken}.", f"{spoken}["))]
    return said[-1] if said else DEFAULTS


def documented() -> list[tuple[str, str, str]]:
    """Each setting for --help: (key, default, meaning), as conf/live/node.yaml says them."""
    text = (resources.files("conf") / "live" / "node.yaml").read_text(encoding="utf-8")
    out, path = [], ""
    for line in text.splitlines():
        body, _, meaning = line.partition("#")
        key, colon, value = body.strip().partition(":")
        if not colon:
            continue
        indent = len(body) - len(body.lstrip())
        if indent == 0:
            path = ""
        if not value.strip():
            path = f"{key}."
            continue
        out.append((f"{path}{key}", value.strip(), meaning.strip()))
    return out


def kinds() -> dict[str, Any]:
    """Types of the top-level settings, for tests that hold the YAML to them."""
    return get_type_hints(NodeSettings, include_extras=True)
