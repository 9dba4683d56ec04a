"""What a policy on disk says of itself: card.yaml, read and checked.

Imported by a serving node, as agents.policy is.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from market.action import ACCEPT_LEVELS, ACTION_NAMES, ACTION_VERSION, COMMIT_LEVELS, FORWARD_LEVELS
from market.observation import OBSERVATION_NAMES, OBSERVATION_VERSION

CARD_VERSION = 1
CARD_FILE, POLICY_FILE = "card.yaml", "policy.onnx"
ACTION_LEVELS = {"accept": ACCEPT_LEVELS, "forward": FORWARD_LEVELS, "commit": COMMIT_LEVELS}


class PolicyError(ValueError):
    """A policy cannot be found, read or asked; the text names place, rule, value and way out."""


class Memory(NamedTuple):
    """What a policy keeps of each provider from one decision to the next."""

    units: int
    control_s: float  # s between two moves of it: the time between two decisions when it was learned


def read_card(folder: Path) -> dict[str, Any]:
    """Read a policy's card and check that this build can serve the policy.

    errors  PolicyError for a missing or damaged card and for another observation or action layout
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise PolicyError(f"{path}: does not exist; a policy is a folder with {POLICY_FILE} and {CARD_FILE}, written by train.py")
    try:
        card = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)  # the other takes 0.1 s
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: is not YAML ({str(error).splitlines()[0]}); export the policy again") from error
    way_out = f"retrain it or check out {entry_of(path, card, 'commit')}"
    _expect(path, card, "format", CARD_VERSION, way_out)
    steps = entry_of(path, card, "training.agent_steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise PolicyError(f"{path}: training.agent_steps must be an integer >= 0, got {steps!r}; export the policy again")
    _expect(path, card, "observation.version", OBSERVATION_VERSION, way_out)
    _expect(path, card, "observation.names", list(OBSERVATION_NAMES), way_out)
    _expect(path, card, "action.version", ACTION_VERSION, way_out)
    for head in ACTION_NAMES:
        _expect(path, card, f"action.levels.{head}", list(ACTION_LEVELS[head]), way_out)
    _check_memory(path, card)
    return dict(card)


def memory_of(card: Mapping[str, Any]) -> Memory | None:
    """Give the memory of a checked card; None of a policy that remembers nothing, whose card has no such entry."""
    return Memory(card["memory"]["units"], float(card["memory"]["control_s"])) if "memory" in card else None


def _check_memory(path: Path, card: Mapping[str, Any]) -> None:
    if "memory" not in card:
        return
    for key, kinds, rule in (("units", int, "an integer > 0"), ("control_s", int | float, "seconds > 0")):
        value = entry_of(path, card, f"memory.{key}")
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
            raise PolicyError(f"{path}: memory.{key} must be {rule}, got {value!r}; export the policy again")


def entry_of(path: Path, card: Any, key: str) -> Any:
    """Look up key.key in a card; PolicyError where it is not there."""
    value = card
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise PolicyError(f"{path}: has no {key}; export the policy again")
        value = value[part]
    return value


def _expect(path: Path, card: Any, key: str, expected: Any, way_out: str) -> None:
    """Refuse a card whose entry is not what this build makes."""
    found = entry_of(path, card, key)
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a != b:
                raise PolicyError(f"{path}: {key}[{place}] is {a}, this build makes {b}; {way_out}")
    elif isinstance(expected, list):
        count = len(found) if isinstance(found, list) else 0
        raise PolicyError(f"{path}: {key} has {count} entries, this build makes {len(expected)}; {way_out}")
    elif found != expected:
        raise PolicyError(f"{path}: {key} is {found}, this build makes {expected}; {way_out}")
