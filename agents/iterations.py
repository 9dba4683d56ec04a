"""What all learners share: a run's beginning and end, and between two iterations the log, the progress line, the checkpoint.

Knows neither how a learner learns nor what it learns in.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from agents import checkpoint as disk
from agents.checkpoint import Checkpoint
from agents.progress import LearningProgress
from agents.settings import Learner
from agents.tracking import Tracker

Probe = Callable[[], Mapping[str, float]]
"""Asked after every step of the environment for means over its providers; logged as the mean over an iteration."""


class LearningError(RuntimeError):
    """Learning has diverged: the loss is no longer a number."""


class Resumable(Protocol):
    """What an environment must offer for the runs in it to be checkpointed."""

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the whole state, in mid-episode."""

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a saved state."""


@dataclass(frozen=True)
class Trained:
    """The end of a training run."""

    policy: torch.nn.Module  # of Stable-Baselines3, or an actor: what agents.export takes
    steps: int  # agent-steps, those before a resume included
    wall_s: float  # of learning, those before a resume included
    checkpoint: Path


def diverged(name: str, steps: int) -> LearningError:
    """Make the error for weights or a loss that are no numbers any more."""
    return LearningError(f"{name}: weights or loss are no longer finite after {steps:,} agent-steps; lower agents.learning_rate")


def minibatch_rows(rows: int, least: int) -> int:
    """Cut a rollout into equal minibatches of at least `least` rows, as many as divide it; a small rollout is one minibatch."""
    parts = next(parts for parts in range(max(1, rows // least), 0, -1) if rows % parts == 0)
    return rows // parts


class Iterations:
    """Counts and closes the iterations of one run; time begins when it is made.

    save     writes a checkpoint; is given the seconds of learning so far
    steps    agent-steps before this run
    spent_s  seconds of learning before this run
    """

    def __init__(
        self,
        settings: Learner,
        tracker: Tracker,
        progress: LearningProgress,
        probe: Probe | None,
        save: Callable[[float], None],
        *,
        steps: int,
        spent_s: float,
    ) -> None:
        self.steps, self.wall_s, self.over = steps, spent_s, False
        self._settings, self._tracker, self._progress = settings, tracker, progress
        self._probe, self._save, self._spent_s = probe, save, spent_s
        self._sums: dict[str, float] = {}
        self._began_s = self._iteration_began_s = time.perf_counter()
        self._saved_at = steps

    def note(self, reward: float) -> None:
        """Note the mean reward of a step of the environment, and ask the probe."""
        self._add("reward_mean", reward)
        if self._probe:
            for name, value in self._probe().items():
                self._add(name, value)

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def close(self, steps: int, figures: Mapping[str, float], *, last: bool) -> None:
        """End an iteration: log it, and write the checkpoint that is due; `over` then says whether the time limit is reached.

        steps    agent-steps so far
        figures  the learner's own, under learner/
        last     nothing follows: a checkpoint is due
        errors   LearningError
        """
        now_s = time.perf_counter()
        self.wall_s = self._spent_s + now_s - self._began_s
        steps_per_s = (steps - self.steps) / (now_s - self._iteration_began_s)
        self.steps = steps
        self._log(steps_per_s, figures)
        limit_s = self._settings.time_limit_s
        self.over = limit_s is not None and now_s - self._began_s >= limit_s
        if last or self.over or steps - self._saved_at >= self._settings.checkpoint_every:
            self._saved_at = steps
            self._save(self.wall_s)
        self._iteration_began_s = now_s
        self._sums = {}

    def _log(self, steps_per_s: float, figures: Mapping[str, float]) -> None:
        if not math.isfinite(figures.get("learner/loss", 0.0)):
            raise diverged(self._settings.name, self.steps)
        means = {f"train/{name}": total / self._settings.rollout for name, total in self._sums.items()}
        rates = {"train/agent_steps_per_s": steps_per_s, "train/wall_s": self.wall_s}
        self._tracker.log({**means, **rates, **figures}, self.steps)
        self._progress.show(self.steps, steps_per_s, means["train/reward_mean"])


class Learning(Protocol):
    """A learner, untrained, and what it learns in: what `carry_out` takes through a run."""

    @property
    def steps(self) -> int:
        """Count the agent-steps so far."""

    @property
    def policy(self) -> torch.nn.Module:
        """Give what a run exports."""

    def begin(self) -> None:
        """Make ready for a run from its start; one that goes on is unpacked instead."""

    def go_on(self, iterations: Iterations) -> None:
        """Learn until the settings' steps, or until the iterations are over; close each of them."""

    def pack(self, wall_s: float, tracker_id: str | None) -> Checkpoint:
        """Gather all that the run's future depends on."""

    def unpack(self, stored: Checkpoint, place: str) -> None:
        """Go on where a stored run stood."""


def carry_out(
    learning: Learning,
    settings: Learner,
    tracker: Tracker,
    *,
    folder: Path,
    resume: Path | None = None,
    probe: Probe | None = None,
) -> Trained:
    """Train until `settings.steps` agent-steps or `settings.time_limit_s`, whichever is first.

    folder   of the run; the latest checkpoint lies in it
    resume   checkpoint, or folder of a run, to go on from
    steps    are whole rollouts: learning ends with the rollout that reaches them
    errors   CheckpointError, LearningError, PolicyError for a policy that learning cannot start from
    """
    before = disk.read(resume) if resume else None
    if before:
        learning.unpack(before, str(resume))
    else:
        learning.begin()
    spent_s = float(before.facts["wall_s"]) if before else 0.0
    path = folder / disk.FILE

    def save(wall_s: float) -> None:
        """Write a checkpoint of this moment."""
        disk.write(path, learning.pack(wall_s, tracker.id))

    with LearningProgress(settings.name, learning.steps, settings.steps) as progress:
        iterations = Iterations(settings, tracker, progress, probe, save, steps=learning.steps, spent_s=spent_s)
        learning.go_on(iterations)
    if not path.exists():
        save(spent_s)
    return Trained(learning.policy, iterations.steps, iterations.wall_s, path)
