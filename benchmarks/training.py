"""Speed and memory of training: `python -m benchmarks.training [--quick] [--json PATH]`.

PPO end to end (rollout, learning, logging) in pairs with SB3's own ceiling: the same settings over an environment that does
nothing. Our own learners in pairs with PPO, each at its own settings and pace.
Then `train.py` in fresh processes: time to its first line of metrics, and the most memory that it holds.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import MultiDiscrete
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from agents.ppo import build
from agents.settings import Learner, SB3Learner
from agents.tracking import CsvTracker, NoTracker, Tracker
from benchmarks.measure import ROOT, Rate, Spread, child, command_line, in_turn, ratios, report, show, spread
from compose import compose
from envs.wwwserve.batch import Batch
from envs.wwwserve.spaces import observation_box
from market.action import ACTION_NVEC, MASK_SIZE
from market.observation import OBSERVATION_SIZE
from plan import Plan, check
from train import learner_of

CEILING = "SB3 over nothing"
SB3, OURS = ("ppo", "maskable_ppo"), ("mappo", "recurrent", "league")
FIRST_LINE = "agent-steps/s"
"""What the first line of progress holds."""


class NothingVec(VecEnv):
    """An environment without a world: the same arrays every step, so that a learner over it is as fast as SB3 can be."""

    def __init__(self, slots: int) -> None:
        self.render_mode = None
        self.action_masks: Any = None
        super().__init__(slots, observation_box(), MultiDiscrete(list(ACTION_NVEC)))
        self._observations = np.random.default_rng(0).random((slots, OBSERVATION_SIZE), np.float32)
        self._rewards = np.zeros(slots, np.float32)
        self._dones = np.zeros(slots, np.bool_)
        self._infos: list[dict[str, Any]] = [{} for _ in range(slots)]
        self._masks = np.ones((slots, MASK_SIZE), np.int8)

    def reset(self) -> Any:
        """Give the first arrays."""
        return self._observations

    def step_async(self, actions: Any) -> None:
        """Take actions and forget them."""

    def step_wait(self) -> Any:
        """Give the same arrays again."""
        return self._observations, self._rewards, self._dones, self._infos

    def close(self) -> None:
        """Do nothing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Give an attribute of this object, once a slot."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: there is nothing to set."""
        raise AttributeError(f"NothingVec: {attr_name} cannot be set")

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        """Give the masks, which allow everything."""
        return list(self._masks)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Say no, once a slot."""
        return [False] * len(list(self._get_indices(indices)))


class Stamps:
    """A tracker around another that notes the time of every call of `log`, which comes once an iteration, at its end."""

    def __init__(self, inner: Tracker) -> None:
        self.inner = inner
        self.times_s: list[tuple[float, float]] = []
        self.id, self.where = inner.id, inner.where

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log, and note when."""
        self.inner.log(values, step)
        self.stamp()

    def stamp(self) -> None:
        """Note the time, by the wall clock and of the CPU."""
        self.times_s.append((time.perf_counter(), time.process_time()))

    def rate(self, rows: int, later_s: float = 0.0) -> Rate:
        """Samples/s of all iterations but the first, of `rows` each; `later_s` is a cost an iteration that was not met."""
        first, last = self.times_s[0], self.times_s[-1]
        count = len(self.times_s) - 1
        wall_s, cpu_s = (last[clock] - first[clock] + count * later_s for clock in (0, 1))
        return Rate(count * rows / wall_s, count * rows / cpu_s)


class Ends(BaseCallback):
    """Stamps the ends of the iterations of a bare SB3 learner."""

    def __init__(self, stamps: Stamps) -> None:
        super().__init__()
        self.stamps = stamps
        self.begun = False

    def _on_rollout_start(self) -> None:
        if self.begun:
            self.stamps.stamp()
        self.begun = True

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.stamps.stamp()


def plan_of(name: str, iterations: int) -> Plan:
    """Plan a run of a learner as it is shipped, in the default market, cut to some iterations."""
    composed = compose([f"agents={name}", "env=wwwserve", "tracking=none"])
    plan = check(composed.values, composed.files)
    assert isinstance(plan.agents, Learner)
    return replace(plan, agents=replace(plan.agents, steps=iterations * rows_of(plan), time_limit_s=None))


def rows_of(plan: Plan) -> int:
    """Samples of one iteration."""
    assert isinstance(plan.agents, Learner)
    return plan.agents.rollout * plan.agents.networks * plan.scenario.population


def ceiling(plan: Plan) -> Rate:
    """Let SB3 learn over nothing, with nothing around it; returns agent-samples/s."""
    settings = plan.agents
    assert isinstance(settings, SB3Learner)
    env = NothingVec(rows_of(plan) // settings.rollout)
    model = build(env, settings, seed=0)
    model.set_env(env)
    model.set_logger(Logger(folder=None, output_formats=[]))
    stamps = Stamps(NoTracker())
    model.learn(settings.steps, callback=Ends(stamps), log_interval=None)  # type: ignore[arg-type]
    return stamps.rate(rows_of(plan))


def end_to_end(plan: Plan, batch: Batch, tracking: str) -> Rate:
    """Learn in the market as train.py does; returns agent-samples/s, with the share of a checkpoint that an iteration bears."""
    settings = plan.agents
    assert isinstance(settings, Learner)

    def parts() -> dict[str, float]:
        """Take the mean reward apart, as train.py does."""
        return dict(zip("abcd", batch.reward_parts.mean(axis=(0, 1)).tolist(), strict=True))

    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        stamps = Stamps(CsvTracker(Path(folder)) if tracking == "csv" else NoTracker())
        once = replace(settings, checkpoint_every=settings.steps)
        learner_of(settings)(batch, once, stamps, seed=0, folder=Path(folder), probe=parts)
    checkpoint_s = time.perf_counter() - stamps.times_s[-1][0]
    rows = rows_of(plan)
    return stamps.rate(rows, checkpoint_s * rows / settings.checkpoint_every)


def learning(plan: Plan, tracking: str = "none") -> Callable[[], Rate]:
    """Make what lets a learner learn, again and again, in networks of its own."""
    assert isinstance(plan.agents, Learner)
    world = plan.school, plan.terms, plan.profiles
    batch = Batch(*world, networks=plan.agents.networks, seed=0, stagger=True)
    return lambda: end_to_end(plan, batch, tracking)


def pairs(name: str, iterations: int, repeats: int) -> dict[str, Any]:
    """Measure a learner of SB3's in the market, with two kinds of tracking, and its ceiling, in turn."""
    plan = plan_of(name, iterations)
    runs = {f"tracking={kind}": learning(plan, kind) for kind in ("none", "csv")}
    return compared(name, {CEILING: lambda: ceiling(plan), **runs}, "the ceiling", repeats)


def beside(names: Sequence[str], iterations: int, repeats: int) -> dict[str, Any]:
    """Measure learners in the market, in turn; the first is what the others are compared with."""
    return compared("all learners", {name: learning(plan_of(name, iterations)) for name in names}, names[0], repeats)


def compared(title: str, runs: Mapping[str, Callable[[], Rate]], first: str, repeats: int) -> dict[str, Any]:
    """Measure runs in turn, show them, and give their rates and what these are of the first run's.

    first   what the first run is called in the table
    """
    found = in_turn(runs, repeats)
    walls = {run: [rate.wall for rate in rates] for run, rates in found.items()}
    cpus = {run: [rate.cpu for rate in rates] for run, rates in found.items()}
    base = next(iter(runs))
    figures = {
        run: {
            "wall": spread(walls[run]),
            "cpu": spread(cpus[run]),
            f"of {first}, wall": ratios(walls[run], walls[base]),
            f"of {first}, cpu": ratios(cpus[run], cpus[base]),
        }
        for run in found
    }
    rows = [(run, *(_text(key, value) for key, value in both.items())) for run, both in figures.items()]
    columns = ("run", "by the clock", "of CPU time", f"of {first}", "likewise, CPU")
    show(f"{title}: thousands of agent-samples a second", columns, rows)
    return figures


def _text(key: str, value: Spread) -> str:
    return value.text(".2f") if key.startswith("of ") else value.over(1e3).text(",.1f")


def train_words(folder: str, *more: str) -> list[str]:
    """Words of a run of train.py that leaves everything in `folder`."""
    place = (f"output={folder}/policies", f"hydra.run.dir={folder}/run")
    return [sys.executable, "train.py", "env=wwwserve", "agents=ppo", "tracking=none", *place, *more]


def first_line_s(cache: str) -> float:
    """Start train.py and wait for its first line of metrics (s); the process is ended then."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        words, environment = train_words(folder), {"NUMBA_CACHE_DIR": cache, "RULES": "compiled"}
        process = child_of(words, environment)
        try:
            for line in process.stderr or ():
                if FIRST_LINE in line:
                    return time.perf_counter() - start
        finally:
            process.terminate()
            process.communicate()
    raise SystemExit(f"{' '.join(words)}: ended without a line of metrics")


def child_of(words: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a process whose errors can be read line by line."""
    return subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def whole_runs(repeats: int, *more: str) -> dict[str, Any]:
    """Measure train.py from outside: its first line with nothing compiled and with all, and the memory of a short whole run."""
    with tempfile.TemporaryDirectory() as cache:
        cold_s = first_line_s(cache)
        warm_s = spread([first_line_s(cache) for _ in range(repeats)])
        with tempfile.TemporaryDirectory() as folder:
            peak = child(train_words(folder, "agents.steps=100_000", *more), NUMBA_CACHE_DIR=cache, RULES="compiled").peak_bytes
    rows = [
        ("first line of metrics, nothing compiled yet, s", f"{cold_s:.1f}"),
        ("first line of metrics, compiled before, s", warm_s.text(".1f")),
        ("most memory of a short run, MB resident", f"{peak / 1e6:,.0f}"),
    ]
    show("train.py in fresh processes", ("what", "found"), rows)
    return {"cold_s": cold_s, "warm_s": warm_s, "peak_mb": peak / 1e6}


def main() -> None:
    """Print the tables and one JSON line."""
    parser = command_line("training", __doc__, "fewer and shorter repeats")
    arguments = parser.parse_args()
    iterations, repeats, starts = (3, 3, 1) if arguments.quick else (6, 7, 3)
    learners = {name: pairs(name, iterations, repeats) for name in SB3}
    learners["beside ppo"] = beside(("ppo", *OURS), iterations, repeats)
    short = ("eval_seeds=8",) if arguments.quick else ()
    report("training", {"learners": learners, "train.py": whole_runs(starts, *short)}, arguments.json)


if __name__ == "__main__":
    main()
