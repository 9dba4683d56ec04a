"""Learns one policy for all providers with Stable-Baselines3's PPO or sb3-contrib's MaskablePPO.

Gets the environment handed in as a VecEnv whose slots are providers; knows neither the simulator nor the market.

A checkpoint is written between two iterations and holds weights, Adam's moments, the random state of torch and NumPy, the
environment's state and the last observations. A resumed run then equals one that never stopped, bit for bit, on the same
machine with the same libraries, number of threads and settings. A changed `steps` moves a linear schedule and so the run.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents import checkpoint as disk
from agents.checkpoint import Checkpoint, CheckpointError
from agents.progress import LearningProgress
from agents.settings import Learner
from agents.tracking import Tracker

Model = PPO | MaskablePPO
Probe = Callable[[], Mapping[str, float]]
"""Asked after every step of the environment for means over its providers; logged as the mean over an iteration."""


class LearningError(RuntimeError):
    """Learning has diverged: the loss is no longer a number."""


class Resumable(Protocol):
    """What a VecEnv must offer beside SB3's interface for its runs to be checkpointed."""

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the whole state, in mid-episode."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a saved state."""


@dataclass(frozen=True)
class Trained:
    """The end of a training run."""

    model: Model
    steps: int  # agent-steps, those before a resume included
    wall_s: float  # of learning, those before a resume included
    checkpoint: Path


class ScaledRewards(VecEnvWrapper):
    """Hands a learner rewards times a constant: large returns let the value's gradient crowd out the policy's."""

    def __init__(self, venv: VecEnv, scale: float) -> None:
        super().__init__(venv)
        self.scale = scale

    def reset(self) -> Any:
        """Start again."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Scale the rewards of a step."""
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards * self.scale, dones, infos

    def has_attr(self, attr_name: str) -> bool:
        """Ask the environment itself, which knows its masks."""
        return self.venv.has_attr(attr_name)


def build(vec_env: VecEnv, settings: Learner, seed: int) -> Model:
    """Make an untrained learner on the processor: for nets of this size a GPU is slower."""
    torch.set_num_threads(settings.torch_threads)
    start = settings.learning_rate
    kind: Any = MaskablePPO if settings.name == "maskable_ppo" else PPO
    model: Model = kind(
        "MlpPolicy",
        ScaledRewards(vec_env, settings.reward_scale),
        learning_rate=start if settings.schedule == "constant" else lambda left: max(0.0, left) * start,
        n_steps=settings.rollout,
        batch_size=minibatch_rows(vec_env.num_envs * settings.rollout, settings.minibatch),
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip,
        ent_coef=settings.ent_coef,
        vf_coef=settings.vf_coef,
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs={"net_arch": list(settings.hidden)},
        seed=seed,
        device="cpu",
    )
    return model


def minibatch_rows(rows: int, least: int) -> int:
    """Cut a rollout into equal minibatches of at least `least` rows, as many as divide it; a small rollout is one minibatch."""
    parts = next(parts for parts in range(max(1, rows // least), 0, -1) if rows % parts == 0)
    return rows // parts


def learn(
    vec_env: VecEnv,
    settings: Learner,
    tracker: Tracker,
    *,
    seed: int,
    folder: Path,
    resume: Path | None = None,
    probe: Probe | None = None,
) -> Trained:
    """Train until `settings.steps` agent-steps or `settings.time_limit_s`, whichever is first.

    vec_env    slots = providers of all networks; with `save` and `restore`, see Resumable
    folder     of the run; the latest checkpoint lies in it
    resume     checkpoint, or folder of a run, to go on from
    steps      are whole rollouts: learning ends with the rollout that reaches them
    errors     CheckpointError, LearningError
    """
    before = disk.read(resume) if resume else None
    model = build(vec_env, settings, seed)
    if before:
        unpack(before, model, vec_env, settings, str(resume))
    spent_s = float(before.facts["wall_s"]) if before else 0.0
    path = folder / disk.FILE

    def save(wall_s: float) -> None:
        """Write a checkpoint of this moment."""
        disk.write(path, pack(model, vec_env, settings, wall_s, tracker.id))

    sink = _Sink()
    model.set_logger(Logger(folder=None, output_formats=[sink]))
    with LearningProgress(settings.name, model.num_timesteps, settings.steps) as progress:
        watch = _Iterations(settings, tracker, progress, sink, spent_s, probe, save)
        left = settings.steps - model.num_timesteps
        if left > 0:
            _run(model, left, watch, fresh=before is None)
    if not path.exists():
        save(spent_s)
    return Trained(model, watch.steps or model.num_timesteps, watch.wall_s, path)


def _run(model: Model, steps: int, watch: "_Iterations", *, fresh: bool) -> None:
    """Let SB3 learn; what torch says of weights that are no numbers any more becomes a LearningError."""
    try:
        model.learn(steps, callback=watch, log_interval=None, reset_num_timesteps=fresh)  # type: ignore[arg-type]
    except ValueError as error:
        if all(bool(torch.isfinite(tensor).all()) for tensor in model.policy.state_dict().values()):
            raise
        raise _diverged(watch.name, watch.steps) from error


def _diverged(name: str, steps: int) -> LearningError:
    return LearningError(f"{name}: weights or loss are no longer finite after {steps:,} agent-steps; lower agents.learning_rate")


class _Sink(KVWriter):
    """Takes what SB3 would write, so that it makes no log folder of its own in the temporary directory."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Keep the learner's figures under learner/."""
        names = {key: f"learner/{key.removeprefix('train/')}" for key in key_values if key.startswith("train/")}
        self.values = {name: float(key_values[key]) for key, name in names.items() if key != "train/n_updates"}

    def close(self) -> None:
        """Do nothing."""


class _Iterations(BaseCallback):
    """Between two iterations: logs once, shows progress, writes the checkpoint that is due, watches the time limit."""

    def __init__(
        self,
        settings: Learner,
        tracker: Tracker,
        progress: LearningProgress,
        sink: _Sink,
        spent_s: float,
        probe: Probe | None,
        save: Callable[[float], None],
    ) -> None:
        super().__init__()
        self.name, self.steps, self.wall_s = settings.name, 0, spent_s
        self._settings, self._tracker, self._progress = settings, tracker, progress
        self._sink, self._spent_s, self._probe, self._save = sink, spent_s, probe, save
        self._open = self._over = False
        self._sums: dict[str, float] = {}

    def _on_training_start(self) -> None:
        self._began_s = self._iteration_began_s = time.perf_counter()
        self._saved_at = self._counted = self.model.num_timesteps

    def _on_step(self) -> bool:
        self._add("reward_mean", float(self.locals["rewards"].mean()) / self._settings.reward_scale)
        if self._probe:
            for name, value in self._probe().items():
                self._add(name, value)
        return not self._over

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def _on_rollout_end(self) -> None:
        self._open = True

    def _on_rollout_start(self) -> None:
        """Close the iteration before; its gradient steps are done when the next rollout starts."""
        self._close(last=False)

    def _on_training_end(self) -> None:
        self._close(last=True)

    def _close(self, *, last: bool) -> None:
        if not self._open:
            return
        self._open = False
        now_s = time.perf_counter()
        self.wall_s = self._spent_s + now_s - self._began_s
        self.steps = self.model.num_timesteps
        self._log((self.steps - self._counted) / (now_s - self._iteration_began_s))
        limit_s = self._settings.time_limit_s
        self._over = limit_s is not None and now_s - self._began_s >= limit_s
        if last or self._over or self.steps - self._saved_at >= self._settings.checkpoint_every:
            self._saved_at = self.steps
            self._save(self.wall_s)
        self._counted, self._iteration_began_s = self.steps, now_s
        self._sums = {}

    def _log(self, steps_per_s: float) -> None:
        self.logger.dump(self.steps)
        if not np.isfinite(self._sink.values.get("learner/loss", 0.0)):
            raise _diverged(self.name, self.steps)
        means = {f"train/{name}": total / self._settings.rollout for name, total in self._sums.items()}
        rates = {"train/agent_steps_per_s": steps_per_s, "train/wall_s": self.wall_s}
        self._tracker.log({**means, **rates, **self._sink.values}, self.steps)
        self._progress.show(self.steps, steps_per_s, means["train/reward_mean"])


def pack(model: Model, vec_env: Any, settings: Learner, wall_s: float, tracker_id: str | None) -> Checkpoint:
    """Gather all that the run's future depends on."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the generator that SB3 shuffles with
    weights = {name: tensor.numpy(force=True).copy() for name, tensor in model.policy.state_dict().items()}
    moments = {
        f"{index}/{name}": tensor.numpy(force=True).copy()
        for index, state in model.policy.optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }
    arrays = {
        **disk.above(weights, "weights"),
        **disk.above(moments, "moments"),
        **disk.above(vec_env.save(), "environment"),
        "random/torch": torch.get_rng_state().numpy(),
        "random/numpy": np.asarray(keys),
        "random/numpy_more": np.array([position, has_gauss, gauss], np.float64),
        "last/observations": np.array(model._last_obs),
        "last/episode_starts": np.array(model._last_episode_starts),
    }
    facts = {
        "agents": asdict(settings),
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "wall_s": wall_s,
        "tracker_id": tracker_id,
        "shape": _shape(model, vec_env, settings),
    }
    return Checkpoint(arrays, facts)


def unpack(stored: Checkpoint, model: Model, vec_env: Any, settings: Learner, place: str) -> None:
    """Put a fresh learner and its environment where the stored run stood.

    errors   CheckpointError when the stored run had another shape, or parts are missing
    """
    wanted, found = _shape(model, vec_env, settings), stored.facts.get("shape")
    if wanted != found:
        differ = {key: value for key, value in wanted.items() if not isinstance(found, dict) or found.get(key) != value}
        told = "; ".join(
            f"{key} was {found.get(key) if isinstance(found, dict) else None}, is {value}" for key, value in differ.items()
        )
        raise CheckpointError(f"{place}: was written by a run of another shape: {told}; give the settings of that run")
    try:
        _unpack_weights(stored, model)
        _unpack_random(stored)
        vec_env.restore(disk.below(stored.arrays, "environment"))
        model.num_timesteps = int(stored.facts["steps"])
        model._n_updates = int(stored.facts["updates"])
        model._last_obs = stored.arrays["last/observations"]
        model._last_episode_starts = stored.arrays["last/episode_starts"]
    except KeyError as error:
        raise CheckpointError(f"{place}: lacks {error}; take an older checkpoint, or start anew without resume") from error
    except ValueError as error:  # the environment's word on a state that is not its own
        raise CheckpointError(f"{place}: {error}; give the settings of that run") from error


def _unpack_weights(stored: Checkpoint, model: Model) -> None:
    weights = {name: torch.from_numpy(value) for name, value in disk.below(stored.arrays, "weights").items()}
    missing = model.policy.state_dict().keys() ^ weights.keys()
    if missing:
        raise KeyError(", ".join(sorted(missing)))
    model.policy.load_state_dict(weights)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in disk.below(stored.arrays, "moments").items():
        index, _, part = name.partition("/")
        state.setdefault(int(index), {})[part] = torch.from_numpy(value)
    groups = model.policy.optimizer.state_dict()["param_groups"]
    model.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _unpack_random(stored: Checkpoint) -> None:
    torch.set_rng_state(torch.from_numpy(stored.arrays["random/torch"]))
    position, has_gauss, gauss = stored.arrays["random/numpy_more"]
    state = (
        "MT19937",
        stored.arrays["random/numpy"],
        int(position),
        int(has_gauss),
        float(gauss),
    )
    np.random.set_state(state)  # noqa: NPY002 - the generator that SB3 shuffles with


def _shape(model: Model, vec_env: Any, settings: Learner) -> dict[str, Any]:
    """Name what two runs must have in common for one to go on from the other."""
    return {
        "agents.name": settings.name,
        "agents.hidden": list(settings.hidden),
        "agents.rollout": settings.rollout,
        "agents.reward_scale": settings.reward_scale,
        "slots": int(vec_env.num_envs),
        "observation size": int(np.prod(model.observation_space.shape or ())),
        "actions": str(model.action_space),
    }
