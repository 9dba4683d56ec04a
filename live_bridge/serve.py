"""`live_bridge serve`: settings from the command line, and one node that runs until it is told to stop."""

import argparse
import asyncio
import gc
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from live_bridge.config import documented, node_settings, value_of
from settings import SettingsError, Slip

SHORT = {
    "policy": "policy",
    "listen": "listen",
    "advertise": "advertise",
    "name": "name",
    "home": "home",
    "profile": "profile",
    "network": "network",
    "launch": "backend.launch",
}
"""Words with a dash for the settings that are said most often."""
COLLECT = (20_000, 20, 20)
"""Objects made and not given back between two looks for cycles: requests under way are no garbage, however many there are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words of the command line."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings that differ from conf/live/node.yaml")
    parser.add_argument("--backend", metavar="URL", help="the engine's URL, or `emulated` for one without a GPU")
    parser.add_argument("--join", metavar="URL", action="append", help="a node of the network to join; may be said again")
    for word, key in SHORT.items():
        parser.add_argument(f"--{word}", metavar=word.upper(), help=f"the setting {key}")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="any setting below, such as control_s=2")


def HELP() -> str:  # noqa: N802 - a constant that is worked out when it is asked for
    """List every setting with its default and meaning."""
    rows = documented()
    return "settings, their defaults and units:\n" + "\n".join(f"  {key:<26} {value:<24} {meaning}" for key, value, meaning in rows)


def spoken(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says, by the full key of the setting.

    errors   SettingsError for a word that is not KEY=VALUE
    """
    out: dict[str, Any] = {}
    for word, key in SHORT.items():
        value = getattr(args, word)
        if value is not None:
            out[key] = value
    if args.join:
        out["join"] = args.join
    if args.backend == "emulated":
        out["backend.kind"] = "emulated"
    elif args.backend is not None:
        out["backend.url"] = args.backend
    for word in args.settings:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise SettingsError(Slip("command line", word, "must be KEY=VALUE, such as control_s=2"))
        out[key] = value_of(key, value)
    return out


def run(args: argparse.Namespace) -> int:
    """Run a node; returns when it has stopped."""
    settings = node_settings(args.config, spoken(args))
    from live_bridge.node import Node

    node = Node(settings, lambda: node_settings(args.config, spoken(args)))
    gc.freeze()  # what is loaded stays, and need not be looked through again
    gc.set_threshold(*COLLECT)
    return run_loop(settings.loop, node.run())


def run_loop(loop: str, work: Coroutine[Any, Any, int]) -> int:
    """Run `work` on uvloop, or on asyncio's own loop where that is asked for."""
    if loop == "asyncio":
        return asyncio.run(work)
    import uvloop

    return uvloop.run(work)
