"""A market put up on this machine: from the command line to words for the simulator and the settings of each node.

`up` and `check` take the same words.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from live_bridge.config import value_of
from live_bridge.episode import Episode
from live_bridge.fleet import Member, free_ports, node
from settings import SettingsError, Slip

EMULATED_SPEED = 20.0
"""Market seconds per second on the wall, where nothing else is said and engines are emulated."""
READY_S, LAUNCH_READY_S = 60.0, 900.0
"""s on the wall that a node has to be ready, without and with an engine of its own to start."""
STOP_S = 20.0
"""s on the wall that a node has to stop before it is killed."""
NODE_WORD = "node."
"""Begins a setting that is for the nodes; all others are for the scenario."""
BESIDE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""For engines that share this machine: without it, vLLM on CPUs gives each a worker process, and the two wait for each other in
loops (vllm/platforms/cpu.py). A node has one thread, and so has what it launches."""
SCHEDULERS = ("central", "paper_central")


class Stage(NamedTuple):
    """What is put up."""

    backend: str
    speed: float
    nodes: int | None  # None: as many as the scenario has providers
    urls: tuple[str, ...]  # of engines that run already
    launch: str | None  # model that each node starts an engine for
    spoken: dict[str, Any]  # settings of nodes, by full key
    scenario: tuple[str, ...]  # words for agents.rehearse

    @property
    def ready_s(self) -> float:
        """S on the wall that a node has to be ready."""
        return LAUNCH_READY_S if self.launch else READY_S


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words that `up` and `check` share."""
    parser.add_argument(
        "--scenario", default="paper-2", metavar="NAME", help="of conf/env: providers, hardware, demand (default: paper-2)"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="how many (default: as many as the scenario has providers)")
    parser.add_argument(
        "--backend",
        default="emulated",
        choices=("emulated", "vllm", "sglang", "openai"),
        help="default: emulated, which needs no GPU",
    )
    parser.add_argument(
        "--speed", type=float, metavar="X", help="market seconds per second on the wall (default: 20 with emulated engines, else 1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the episode (default: 0)")
    parser.add_argument("--load", type=float, default=1.0, metavar="X", help="times the scenario's rates of arrival (default: 1)")
    parser.add_argument("--urls", metavar="URL,URL", help="engines that run already, one a node")
    parser.add_argument("--launch", metavar="MODEL", help="let each node start an engine for this model")
    parser.add_argument(
        "--profiles", metavar="FILE,FILE", help="serving profiles by `live_bridge calibrate`, in turn (default: the scenario's)"
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="of the scenario or the market: env.horizon_s=300 market.duel_rate=0; or of all nodes: node.http=aiohttp",
    )


def read(args: argparse.Namespace) -> Stage:
    """Check what the words say together.

    errors   SettingsError
    """
    urls = _list(args.urls)
    emulated = args.backend == "emulated"
    speed = args.speed if args.speed is not None else EMULATED_SPEED if emulated else 1.0
    slips = []
    if not emulated and bool(urls) == bool(args.launch):
        slips.append(("--backend", f"{args.backend} needs --urls of engines that run, or --launch MODEL, and not both"))
    if emulated and (urls or args.launch):
        slips.append(("--backend", "emulated starts its engines itself; leave out --urls and --launch"))
    if not emulated and speed != 1.0:
        slips.append(("--speed", f"must be 1 with a real engine, got {speed:g}"))
    if not speed > 0.0:
        slips.append(("--speed", f"must be > 0, got {speed:g}"))
    nodes = args.nodes if args.nodes is not None else len(urls) or None
    if nodes is not None and nodes < 1:
        slips.append(("--nodes", f"must be >= 1, got {nodes}"))
    if urls and nodes != len(urls):
        slips.append(("--urls", f"must name one engine a node: {nodes} nodes, got {len(urls)}"))
    mine = [word for word in args.settings if word.startswith(NODE_WORD)]
    slips += [(word, "must be node.KEY=VALUE, such as node.control_s=2") for word in mine if "=" not in word]
    if slips:
        raise SettingsError(*(Slip("command line", key, rule) for key, rule in slips))
    pairs = [word.removeprefix(NODE_WORD).partition("=") for word in mine]
    words = [f"env={args.scenario}", f"seed={args.seed}", f"load={args.load}", "stay=true"]
    words += [f"providers={nodes}"] if nodes is not None else []
    words += [f"profiles=[{','.join(_list(args.profiles))}]"] if args.profiles else []
    words += [word for word in args.settings if word not in mine]
    spoken = {key: value_of(NODE_WORD + key, value) for key, _, value in pairs}
    return Stage(args.backend, speed, nodes, urls, args.launch, spoken, tuple(words))


def policies(text: str) -> list[str]:
    """Take a list of policies apart.

    errors   SettingsError for a scheduler: it sees everything, and so is no node
    """
    names = _list(text)
    wrong = [name for name in names if name in SCHEDULERS]
    if wrong or not names:
        rule = f"{wrong[0]} is a scheduler above the market, and no policy of a node" if wrong else "must name at least one"
        raise SettingsError(Slip("command line", "--policies", f"{rule}; take paper, single, or a folder"))
    return list(names)


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def members(stage: Stage, episode: Episode, policy: str, folder: Path) -> list[Member]:
    """Write the config files of all nodes of an episode; the first one founds the network and keeps its ledger.

    folder   takes one folder a node, and terms.yaml
    """
    folder.mkdir(parents=True, exist_ok=True)
    terms = folder / "terms.yaml"
    terms.write_text(yaml.safe_dump(episode.terms, sort_keys=False), encoding="utf-8")
    count = len(episode.places)
    ports = free_ports(2 * count)
    out = []
    for i, place in enumerate(episode.places):
        home = folder / f"node-{i}"
        home.mkdir(exist_ok=True)
        profile = home / "profile.yaml"
        profile.write_text(yaml.safe_dump(place.profile, sort_keys=False), encoding="utf-8")
        values = {
            "join": [] if i == 0 else [f"http://127.0.0.1:{ports[0]}"],
            "network": f"{episode.scenario}-{ports[0]}",
            "market": str(terms),
            "policy": policy,
            "profile": str(profile),
            "slo_s": place.slo_s,
            "control_s": episode.control_s,
            "tick_s": episode.tick_s,
            "speed": stage.speed,
            "backend": _backend(stage, i, ports[count + i]) | {"first_byte_s": episode.horizon_s, "seed": count * episode.seed + i},
            # work is paid for, and a duel waits, as long as in the simulator
            "ledger": {"hold_ttl_s": 2.0 * episode.horizon_s},
            "duels": {"deadline_s": episode.terms["duel_ttl_s"]},
            "limits": {"drain_s": 2},
        }
        for key, value in stage.spoken.items():
            _put(values, key.split("."), value)
        out.append(node(f"node-{i}", home, ports[i], values, BESIDE if stage.launch else {}))
    return out


def _backend(stage: Stage, i: int, port: int) -> dict[str, Any]:
    if stage.urls:
        return {"kind": stage.backend, "url": stage.urls[i]}
    if stage.launch:
        return {"kind": stage.backend, "url": f"http://127.0.0.1:{port}", "launch": stage.launch}
    return {"kind": stage.backend}


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value
