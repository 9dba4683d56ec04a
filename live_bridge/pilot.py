"""Who decides at a node: a trained policy or a named one, asked every control_s; the paper's rules whenever it fails.

A policy that gives values that are not finite, raises, or stalls costs no request: the paper's rules steer until it is well again.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

from agents.card import CARD_FILE, POLICY_FILE, PolicyError
from agents.names import folder_of
from agents.policy import ORT_ERRORS, Baseline, Policy, load

PATIENCE_S = 0.05
"""Seconds on the wall that a decision may take: it is some microseconds of work."""
MARKETS_ONLY = ("paper_central", "central")
MOST_BYTES = {CARD_FILE: 1 << 20, POLICY_FILE: 64 << 20}
"""Of a policy's files: a small network, and what is to be known of it."""
OUTSIDE = b"location"
"""The key under which an ONNX file names another one that holds its weights."""

Seen = tuple[np.ndarray, np.ndarray]
"""Observation (1, OBSERVATION_SIZE) float32 and action mask (1, MASK_SIZE)."""


class Verdict(NamedTuple):
    """A decision: levels of accept, forward, commit; None for the paper's rules, with the reason when that is a failure."""

    action: tuple[int, int, int] | None
    failure: str | None


class Pilot:
    """A policy behind a fence."""

    def __init__(self, name: str, control_s: float, seed: int = 0) -> None:
        """Load a policy by name or folder, to be asked each `control_s` market seconds.

        errors   PolicyError
        """
        self.late: Callable[[Verdict], None] = lambda _verdict: None
        """Hears of a decision that came after its time: the paper's rules have steered until then."""
        self.loads = 0
        """How many policies were in force before this one."""
        self._control_s, self._seed = control_s, seed
        self._stalled: asyncio.Future[Verdict] | None = None
        self.baseline = fenced(name, control_s, seed)
        self._thread = Asking()

    @property
    def name(self) -> str:
        """Name of the policy in force."""
        return self.baseline.name

    def reload(self, name: str) -> None:
        """Put another policy in force; a bad one is refused and the old one stays.

        errors   PolicyError
        """
        self.take(self.read(name))

    def read(self, name: str) -> Baseline:
        """Load another policy, without any effect yet.

        errors   PolicyError
        """
        return fenced(name, self._control_s, self._seed)

    def take(self, baseline: Baseline) -> None:
        """Put a policy in force that was read; what the old one may still say is not heard, and its thread is its own to stall."""
        self.baseline = baseline
        self.loads += 1
        if self._stalled is not None and not self._stalled.done():
            self._stalled.cancel()
            self._thread.close()
            self._thread = Asking()
        self._stalled = None

    async def decide(self, observe: Callable[[], Seen]) -> Verdict:
        """Ask the policy about what `observe` sees now; a late answer goes to `late`."""
        if self.baseline.brain == "paper":
            return Verdict(None, None)
        if self._stalled is not None and not self._stalled.done():
            return Verdict(None, "stalled")
        asked = self._thread.ask(self.baseline.policy, observe())
        done, _ = await asyncio.wait((asked,), timeout=PATIENCE_S)
        if asked in done:
            return asked.result()
        self._stalled = asked
        asked.add_done_callback(self._came)
        return Verdict(None, "stalled")

    def _came(self, asked: "asyncio.Future[Verdict]") -> None:
        """A stalled policy has answered after all."""
        if not asked.cancelled() and asked.result().action is not None:
            self.late(asked.result())

    def close(self) -> None:
        """Let the thread end; one that stalls is not waited for, and not heard."""
        self.late = lambda _verdict: None
        self._thread.close()


class Asking:
    """A thread in which a policy is asked: a daemon, so that a policy that never answers does not keep the process from ending."""

    def __init__(self) -> None:
        self._questions: SimpleQueue[tuple[Policy, Seen, asyncio.Future[Verdict]] | None] = SimpleQueue()
        Thread(target=self._run, name="policy", daemon=True).start()

    def ask(self, policy: Policy, seen: Seen) -> "asyncio.Future[Verdict]":
        """Ask; the answer comes into the running loop."""
        asked: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._questions.put((policy, seen, asked))
        return asked

    def close(self) -> None:
        """End after the question under way."""
        self._questions.put(None)

    def _run(self) -> None:
        while (question := self._questions.get()) is not None:
            policy, seen, asked = question
            verdict = ask(policy, *seen)
            try:
                asked.get_loop().call_soon_threadsafe(_answer, asked, verdict)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            policy.prepare()


def _answer(asked: "asyncio.Future[Verdict]", verdict: Verdict) -> None:
    if not asked.done():
        asked.set_result(verdict)


def ask(policy: Policy, observation: np.ndarray, mask: np.ndarray) -> Verdict:
    """Ask a policy and check its answer: one level of each head, each one possible."""
    try:
        action = policy.act(observation, mask)
    except (PolicyError, ValueError, ArithmeticError, IndexError, RuntimeError, MemoryError, *ORT_ERRORS) as error:
        text = str(error)
        return Verdict(None, "not_finite" if "finite" in text else "wrong_shape" if "shape" in text else "refused")
    levels = np.asarray(action)
    if levels.shape != (1, 3) or levels.dtype.kind != "i" or not ((levels >= 0) & (levels < 5)).all():
        return Verdict(None, "wrong_shape")
    chosen = [int(level) for level in levels[0]]
    if not all(mask[0, 5 * head + level] for head, level in enumerate(chosen)):
        return Verdict(None, "masked")
    return Verdict((chosen[0], chosen[1], chosen[2]), None)


def fenced(name: str, control_s: float, seed: int) -> Baseline:
    """Load a policy that a node can follow, with nothing remembered; its files are looked at before they are read.

    control_s   market seconds between two decisions
    errors      PolicyError
    """
    folder = folder_of(name)
    if folder is not None:
        look_at(folder)
    try:
        found = load(name, seed=seed)
    except (OSError, MemoryError, RecursionError, *ORT_ERRORS) as error:
        reason = str(error).partition("\n")[0][:300]
        raise PolicyError(f"policy: {name} cannot be used: {type(error).__name__}: {reason}; export it again") from None
    if found.name in MARKETS_ONLY:
        raise PolicyError(
            f"policy: {found.name} is a scheduler that sees all nodes at once; a node can follow paper, single or a trained one"
        )
    found.policy.begin(control_s)
    return found


def look_at(folder: Path) -> None:
    """Refuse files that are no plain ones, too large to be a policy's, or made to read others: they are not even opened as such."""
    for name, most in MOST_BYTES.items():
        path = folder / name
        if path.exists() and not path.is_file():
            raise PolicyError(f"{path}: must be a plain file; export the policy again")
        if path.is_file() and path.stat().st_size > most:
            raise PolicyError(f"{path}: has {path.stat().st_size} bytes, a policy's has at most {most}; export it again")
    model = folder / POLICY_FILE
    if model.is_file() and OUTSIDE in model.read_bytes():
        raise PolicyError(f"{model}: refers to a file beside itself; a policy is one file, export it again")
