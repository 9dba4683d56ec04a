"""Small episodes and plays of them, made up: what a test of comparisons, tables and pictures needs and no simulator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from live_bridge.config import terms_named
from live_bridge.episode import FINISHED, Ask, Course, Episode, Place, rows
from tests.live_bridge.test_fleet import ROOT

PROFILE = yaml.safe_load((ROOT / "conf/serving/cpu_tiny.yaml").read_text())
HORIZON_S, UNTIL_S = 200.0, 100.0


def asks(count: int = 200, providers: int = 2, tokens: int = 100) -> list[Ask]:
    return [Ask(UNTIL_S * i / count, i % providers, 20, tokens, tokens, 30.0) for i in range(count)]


def course(demand: Sequence[Ask], *, seed: int = 0, spread: float = 0.0, factor: float = 1.0, **changes: Any) -> Course:
    """Latencies of 10 s on the mean; `spread` lets plays of different seeds differ as a whole, `factor` makes one slower."""
    draw, whole = np.random.default_rng(1), np.random.default_rng(seed)
    latency = 10.0 * (0.5 + draw.random(len(demand))) * factor * (1.0 + spread * whole.standard_normal())
    table = rows(demand, [ask.provider for ask in demand], latency.tolist(), (0.1 * latency).tolist(), [FINISHED] * len(demand))
    providers = 1 + max(ask.provider for ask in demand)
    found = Course(
        table,
        np.full(providers, 102.0),
        np.full((3, 5), 40, np.int64),
        {"offers_made": [0] * providers, "duels_won": [2] * providers},
    )
    return found._replace(**changes)


def episode(played: dict[str, list[Course]], demand: Sequence[Ask] | None = None, **changes: Any) -> Episode:
    demand = list(demand or asks())
    providers = 1 + max(ask.provider for ask in demand)
    terms = dict(terms_named("paper").__dict__)
    places = [Place("cpu_tiny", PROFILE, "lab", 30.0)] * providers
    made = Episode("small", 7, HORIZON_S, UNTIL_S, 1.0, 1.0, terms, places, demand, played, {"commit": None, "dirty": False})
    return made._replace(**changes)
