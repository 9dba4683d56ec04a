"""Minds for tests: small worlds of some peers, by hand."""

from dataclasses import replace
from typing import Any

from live_bridge.brain import Brain, Setup
from live_bridge.config import profile_named, terms_named
from market.profile import Profile
from market.terms import Terms

TERMS = replace(terms_named("paper"), duel_rate=0.0)
PROFILE = profile_named("l4_qwen3_8b")
SLOW = replace(PROFILE, a_s=1.0, max_num_seqs=2)
"""A second a token, two requests at once."""
PEERS = ("ann", "ben", "cas")
CREDIT, STAKE = 98_000_000, 2_000_000


def setup(terms: Terms = TERMS, profile: Profile = PROFILE, **changes: Any) -> Setup:
    return Setup("me", terms, profile, 200.0, 1.0, 987654321, 1, 60.0)._replace(**changes)


def mind(*, peers: tuple[str, ...] = PEERS, policy: tuple[int, int, int] | None = (3, 2, 2), **changes: Any) -> Brain:
    """A mind that knows `peers`, alive and rich, and follows `policy` (None: the paper's rules)."""
    brain = Brain(setup(**changes))
    brain.on(["accounts", 0.0, [[name, CREDIT, STAKE, 0, 0] for name in ("me", *peers)]])
    brain.on(["heard", 0.0, [[name, 5, 0.1, 1.0, 0.1, 1.0, 0, 0] for name in peers]])
    if policy:
        brain.on(["decide", 0.0, *policy])
    return brain


def names(commands: list[list[Any]]) -> list[str]:
    return [command[0] for command in commands]
