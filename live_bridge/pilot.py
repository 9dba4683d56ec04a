"""Who decides at a node: a trained policy or a named one, asked every control_s; the paper's rules whenever it fails.

A policy that gives values that are not finite, raises, or stalls costs no request: the paper's rules steer until it is well again.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from agents.policy import Baseline, Policy, PolicyError, load

PATIENCE_S = 0.05
"""Seconds on the wall that a decision may take: it is some microseconds of work."""
MARKETS_ONLY = ("paper_central", "central")


class Verdict(NamedTuple):
    """A decision: levels of accept, forward, commit; None for the paper's rules, with the reason when that is a failure."""

    action: tuple[int, int, int] | None
    failure: str | None


class Pilot:
    """A policy behind a fence."""

    def __init__(self, name: str, seed: int = 0) -> None:
        """Load a policy by name or folder.

        errors   PolicyError
        """
        self.late: Callable[[Verdict], None] = lambda _verdict: None
        """Hears of a decision that came after its time: the paper's rules have steered until then."""
        self._seed = seed
        self._thread = ThreadPoolExecutor(1, "policy")
        self._stalled: asyncio.Future[Verdict] | None = None
        self.baseline = self._load(name)

    @property
    def name(self) -> str:
        """Name of the policy in force."""
        return self.baseline.name

    def reload(self, name: str) -> None:
        """Put another policy in force; a bad one is refused and the old one stays.

        errors   PolicyError
        """
        self.baseline = self._load(name)

    def _load(self, name: str) -> Baseline:
        found = load(name, seed=self._seed)
        if found.name in MARKETS_ONLY:
            raise PolicyError(
                f"policy: {found.name} is a scheduler that sees all nodes at once; a node can follow paper, single or a trained one"
            )
        return found

    async def decide(self, observe: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Verdict:
        """Ask the policy about what `observe` sees now."""
        if self.baseline.brain == "paper":
            return Verdict(None, None)
        if self._stalled is not None and not self._stalled.done():
            return Verdict(None, "stalled")
        observation, mask = observe()
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._thread, _act, self.baseline.policy, observation, mask)
        try:
            return await asyncio.wait_for(asyncio.shield(asked), PATIENCE_S)
        except TimeoutError:
            self._stalled = asked
            asked.add_done_callback(self._came)
            return Verdict(None, "stalled")

    def _came(self, asked: "asyncio.Future[Verdict]") -> None:
        """A stalled policy has answered after all."""
        if not asked.cancelled() and asked.exception() is None and asked.result().action is not None:
            self.late(asked.result())

    def close(self) -> None:
        """Give the thread back; one that stalls is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _act(policy: Policy, observation: np.ndarray, mask: np.ndarray) -> Verdict:
    """Ask a policy and check its answer."""
    try:
        action = policy.act(observation, mask)
    except (PolicyError, ValueError, ArithmeticError, IndexError, RuntimeError) as error:
        return Verdict(None, "not_finite" if "finite" in str(error) else "refused")
    levels = np.asarray(action)
    if levels.shape != (1, 3) or levels.dtype.kind != "i" or not ((levels >= 0) & (levels < 5)).all():
        return Verdict(None, "wrong_shape")
    chosen = [int(level) for level in levels[0]]
    if not all(mask[0, 5 * head + level] for head, level in enumerate(chosen)):
        return Verdict(None, "masked")
    return Verdict((chosen[0], chosen[1], chosen[2]), None)
