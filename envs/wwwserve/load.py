"""Reads conf/ into the types of the simulated world, for callers that do not come through train.py."""

from importlib import resources
from typing import Any

import yaml

from envs.wwwserve.scenario import Scenario
from market.profile import Profile
from market.terms import Terms
from settings import SettingsError, Slip, did_you_mean, read


def names(group: str) -> list[str]:
    """List the files of conf/`group`, without their ending."""
    return sorted(entry.name[:-5] for entry in (resources.files("conf") / group).iterdir() if entry.name.endswith(".yaml"))


def values(group: str, name: str) -> dict[str, Any]:
    """Read conf/`group`/`name`.yaml as plain values."""
    known = names(group)
    if name not in known:
        raise SettingsError(Slip(f"conf/{group}", "", f"has no {name}.yaml; {did_you_mean(name, known)}"))
    text = (resources.files("conf") / group / f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return found


def scenario(name: str) -> Scenario:
    """Read a scenario by name."""
    return read(Scenario, values("env", name), f"conf/env/{name}.yaml")


def terms(name: str = "paper") -> Terms:
    """Read the terms of a market by name."""
    return read(Terms, values("market", name), f"conf/market/{name}.yaml")


def profiles(wanted: set[str] | None = None) -> dict[str, Profile]:
    """Read serving profiles; `wanted` limits them to those names that exist."""
    chosen = [name for name in names("serving") if wanted is None or name in wanted]
    return {name: read(Profile, values("serving", name), f"conf/serving/{name}.yaml") for name in chosen}
