"""Decisions and observations in words for the live page, made of the rules' own tables: the page holds no copy of a level."""

import re
from collections.abc import Sequence
from typing import TypedDict

from market.action import ACCEPT_LEVELS, COMMIT_LEVELS, FORWARD_LEVELS, NO_LIMIT
from market.observation import OBSERVATION_NAMES, OBSERVATION_TABLE, Entry

SHOWN = (
    "kv_usage",
    "queue",
    "wait",
    "completion",
    "load_fast",
    "credit",
    "stake_of_wealth",
    "offer_success",
    "peers_wait_min",
    "peers_accept",
)
"""Entries of the observation that the page shows behind a decision."""
FULLEST = 0.9999
"""A squashed entry of 1 stands for any great number: this much of it is undone."""
_HALF = re.compile(r"^x / \(([0-9.,]+) \+ x\)$")


class EntryWords(TypedDict):
    """One entry of the observation for people."""

    meaning: str
    unit: str
    half: float | None  # in natural units, of a squashed entry; None = a share, as it is


class LevelWords(TypedDict):
    """One level of an action: a word or two, and a sentence."""

    short: str
    long: str


class Words(TypedDict):
    """What the page is told once."""

    accept: list[LevelWords]
    forward: list[LevelWords]
    commit: list[LevelWords]
    entries: dict[str, EntryWords]


def words() -> Words:
    """Put the tables of the rules into words."""
    return {
        "accept": [_accept(level) for level in ACCEPT_LEVELS],
        "forward": [_forward(level) for level in FORWARD_LEVELS],
        "commit": [_commit(level) for level in COMMIT_LEVELS],
        "entries": {
            entry.name: {"meaning": entry.meaning, "unit": entry.unit, "half": half_of(entry)} for entry in OBSERVATION_TABLE
        },
    }


def why(observation: Sequence[float]) -> dict[str, float]:
    """Read the entries SHOWN off an observation, in natural units: requests, s, shares.

    observation   (OBSERVATION_SIZE,)
    """
    return {name: _natural(_PLACES[name], float(observation[_PLACES[name]])) for name in SHOWN}


def half_of(entry: Entry) -> float | None:
    """Find the half-way point of a squashed entry; None for one that is given as it is."""
    if entry.normalisation == "as it is":
        return None
    found = _HALF.match(entry.normalisation)
    assert found is not None, f"{entry.name}: {entry.normalisation} is no normalisation that can be undone"
    return float(found[1].replace(",", ""))


def _natural(place: int, value: float) -> float:
    half = _HALVES[place]
    if half is None:
        return round(value, 4)
    value = min(max(value, 0.0), FULLEST)
    return float(f"{half * value / (1.0 - value):.4g}")


def _accept(level: float) -> LevelWords:
    if level < 0.0:
        return {"short": "none", "long": "Takes no work of peers."}
    if level >= NO_LIMIT:
        return {"short": "all", "long": "Takes any work of peers."}
    return {"short": f"≤ {level:.0%}", "long": f"Takes peers' work that should be done here within {level:.0%} of its time left."}


def _forward(level: float) -> LevelWords:
    if level >= NO_LIMIT:
        return {"short": "never", "long": "Keeps all own work."}
    if level <= 0.0:
        return {"short": "always", "long": "Offers all own work to peers."}
    return {
        "short": f"> {level:.0%}",
        "long": f"Offers own work to peers when it would need more than {level:.0%} of its time left here.",
    }


def _commit(level: float) -> LevelWords:
    if level <= 0.0:
        return {"short": "0%", "long": "Commits no stake."}
    return {"short": f"{level:.0%}", "long": f"Commits {level:.0%} of its wealth as stake."}


_HALVES = tuple(half_of(entry) for entry in OBSERVATION_TABLE)
_PLACES = {name: place for place, name in enumerate(OBSERVATION_NAMES)}
