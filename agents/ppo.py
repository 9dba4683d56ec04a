"""Learns one policy for all providers with Stable-Baselines3's PPO or sb3-contrib's MaskablePPO.

Gets the environment handed in as a VecEnv whose slots are providers; knows neither the simulator nor the market.

A checkpoint is written between two iterations and holds weights, Adam's moments, the random state of torch and NumPy, the
environment's state and the last observations. A resumed run then equals one that never stopped, bit for bit, on the same
machine with the same libraries, number of threads and settings. A changed `steps` moves a linear schedule and so the run.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents import checkpoint as disk
from agents.checkpoint import Checkpoint
from agents.iterations import Iterations, Probe, Trained, carry_out, diverged, minibatch_rows
from agents.settings import SB3Learner
from agents.start import put_start
from agents.tracking import Tracker
from agents.weights import moments_of, put_moments, put_weights, weights_of

Model = PPO | MaskablePPO


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


def build(vec_env: VecEnv, settings: SB3Learner, seed: int) -> Model:
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


def learn(
    vec_env: VecEnv,
    settings: SB3Learner,
    tracker: Tracker,
    *,
    seed: int,
    folder: Path,
    resume: Path | None = None,
    probe: Probe | None = None,
) -> Trained:
    """Train; the rest, and the errors, as agents.iterations.carry_out.

    vec_env    slots = providers of all networks; with `save` and `restore`, see agents.iterations.Resumable
    """
    return carry_out(Sb3(vec_env, settings, seed), settings, tracker, folder=folder, resume=resume, probe=probe)


class Sb3:
    """A learner of SB3's and what it learns in."""

    def __init__(self, vec_env: Any, settings: SB3Learner, seed: int) -> None:
        self.vec_env, self.settings = vec_env, settings
        self.model = build(vec_env, settings, seed)
        self._fresh = True

    @property
    def steps(self) -> int:
        """Count the agent-steps so far."""
        return self.model.num_timesteps

    @property
    def policy(self) -> torch.nn.Module:
        """Give SB3's policy, the value's layers included."""
        return self.model.policy

    def begin(self) -> None:
        """Take the weights of the policy to start from, if one is named."""
        if self.settings.start:
            policy = self.model.policy
            put_start(self.settings, {"hidden": policy.mlp_extractor.policy_net, "heads": policy.action_net}, {})

    def go_on(self, iterations: Iterations) -> None:
        """Let SB3 learn; what torch says of weights that are no numbers any more becomes a LearningError."""
        left = self.settings.steps - self.steps
        if left <= 0:
            return
        sink = _Sink()
        self.model.set_logger(Logger(folder=None, output_formats=[sink]))
        watch = _Watch(self.settings, iterations, sink)
        try:
            self.model.learn(left, callback=watch, log_interval=None, reset_num_timesteps=self._fresh)  # type: ignore[arg-type]
        except ValueError as error:
            if all(bool(torch.isfinite(tensor).all()) for tensor in self.policy.state_dict().values()):
                raise
            raise diverged(self.settings.name, iterations.steps) from error

    def pack(self, wall_s: float, tracker_id: str | None) -> Checkpoint:
        """Gather all that the run's future depends on."""
        model = self.model
        _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the generator that SB3 shuffles with
        arrays = {
            **disk.above(weights_of(model.policy), "weights"),
            **disk.above(moments_of(model.policy.optimizer), "moments"),
            **disk.above(self.vec_env.save(), "environment"),
            "random/torch": torch.get_rng_state().numpy(),
            "random/numpy": np.asarray(keys),
            "random/numpy_more": np.array([position, has_gauss, gauss], np.float64),
            "last/observations": np.array(model._last_obs),
            "last/episode_starts": np.array(model._last_episode_starts),
        }
        facts = {
            "agents": asdict(self.settings),
            "steps": model.num_timesteps,
            "updates": model._n_updates,
            "wall_s": wall_s,
            "tracker_id": tracker_id,
            "shape": self._shape(),
        }
        return Checkpoint(arrays, facts)

    def unpack(self, stored: Checkpoint, place: str) -> None:
        """Put a fresh learner and its environment where the stored run stood.

        errors   CheckpointError when the stored run had another shape, or parts are missing
        """
        disk.check_shape(self._shape(), stored, place)
        model, self._fresh = self.model, False
        with disk.refusing(place):
            put_weights(model.policy, disk.below(stored.arrays, "weights"))
            put_moments(model.policy.optimizer, disk.below(stored.arrays, "moments"))
            _unpack_random(stored)
            self.vec_env.restore(disk.below(stored.arrays, "environment"))
            model.num_timesteps = int(stored.facts["steps"])
            model._n_updates = int(stored.facts["updates"])
            model._last_obs = stored.arrays["last/observations"]
            model._last_episode_starts = stored.arrays["last/episode_starts"]

    def _shape(self) -> dict[str, Any]:
        """Name what two runs must have in common for one to go on from the other."""
        return {
            "agents.name": self.settings.name,
            "agents.hidden": list(self.settings.hidden),
            "agents.control_s": self.settings.control_s,
            "agents.rollout": self.settings.rollout,
            "agents.reward_scale": self.settings.reward_scale,
            "slots": int(self.vec_env.num_envs),
            "observation size": int(np.prod(self.model.observation_space.shape or ())),
            "actions": str(self.model.action_space),
        }


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


class _Watch(BaseCallback):
    """Tells the iterations of a run what SB3 does."""

    def __init__(self, settings: SB3Learner, iterations: Iterations, sink: _Sink) -> None:
        super().__init__()
        self.iterations = iterations
        self._scale, self._sink, self._open = settings.reward_scale, sink, False

    def _on_step(self) -> bool:
        self.iterations.note(float(self.locals["rewards"].mean()) / self._scale)
        return not self.iterations.over

    def _on_rollout_end(self) -> None:
        self._open = True

    def _on_rollout_start(self) -> None:
        """Close the iteration before; its gradient steps are done when the next rollout starts."""
        self._close(last=False)

    def _on_training_end(self) -> None:
        self._close(last=True)

    def _close(self, *, last: bool) -> None:
        if self._open:
            self._open = False
            self.logger.dump(self.model.num_timesteps)
            self.iterations.close(self.model.num_timesteps, self._sink.values, last=last)


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
