"""Names, units and ranges of the settings in conf/agents and conf/tracking; the values stand in YAML.

Imports nothing heavy, so that a slip is refused before a learner is loaded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from settings import Range, SettingsError, Slip, did_you_mean, plain, read, show

Share = Annotated[float, Range(0, 1, "share")]
Level = Annotated[int, Range(0, 4, "")]
Layers = tuple[Annotated[int, Range(1, 4096, "units")], ...]


@dataclass(frozen=True)
class Learner:
    """What all learners share: one policy for all providers, learnt by PPO."""

    name: str
    start: str | None
    networks: Annotated[int, Range(1, 65_536, "networks")]
    steps: Annotated[int, Range(1, 10**12, "agent-steps")]
    control_s: Annotated[float, Range(0.001, 1e7, "s")] | None
    rollout: Annotated[int, Range(2, 65_536, "decisions")]  # one decision has no advantage to normalise
    minibatch: Annotated[int, Range(2, 10**9, "rows")]
    epochs: Annotated[int, Range(1, 1000, "")]
    learning_rate: Annotated[float, Range(1e-9, 1, "")]
    schedule: Literal["constant", "linear"]
    gamma: Share
    gae_lambda: Share
    clip: Annotated[float, Range(1e-6, 1, "")]
    ent_coef: Annotated[float, Range(0, 100, "")]
    max_grad_norm: Annotated[float, Range(1e-9, math.inf, "")]
    hidden: Layers
    torch_threads: Annotated[int, Range(1, 1024, "threads")]
    checkpoint_every: Annotated[int, Range(1, 10**12, "agent-steps")]
    time_limit_s: Annotated[float, Range(0.001, math.inf, "s")] | None


@dataclass(frozen=True)
class SB3Learner(Learner):
    """A learner of Stable-Baselines3: actor and critic see one provider's observation."""

    name: Literal["ppo", "maskable_ppo"]
    reward_scale: Annotated[float, Range(1e-6, 1e6, "")]
    vf_coef: Annotated[float, Range(0, 100, "")]


@dataclass(frozen=True)
class LeagueSettings:
    """Co-players that are no copies of the learner."""

    networks: Share
    seats: Share
    past: Share
    pool: tuple[str, ...]
    snapshots: Annotated[int, Range(0, 1000, "past selves")]
    snapshot_every: Annotated[int, Range(1, 10**12, "agent-steps")]

    def __post_init__(self) -> None:
        if not self.pool and not self.snapshots:
            raise ValueError("must have a pool or snapshots above 0; got neither, so nobody could take a seat")


@dataclass(frozen=True)
class MappoLearner(Learner):
    """Our own learner: action masks, and a critic that sees all providers of a network."""

    name: Literal["mappo", "league", "recurrent"]
    critic_hidden: Layers
    critic_learning_rate: Annotated[float, Range(1e-9, 1, "")]
    warmup: Annotated[int, Range(0, 10**12, "agent-steps")]
    league: LeagueSettings | None

    def __post_init__(self) -> None:
        if not self.critic_hidden:
            raise ValueError("critic_hidden must name at least one layer, which embeds a provider; got []")


@dataclass(frozen=True)
class RecurrentLearner(MappoLearner):
    """Our own learner, of a policy that remembers."""

    memory: Annotated[int, Range(1, 4096, "units")]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.league is not None:
            raise ValueError(
                "league must be null: past selves would need memories of their own; take agents=league for one without"
            )


@dataclass(frozen=True)
class Baseline:
    """A policy or scheduler that is evaluated, never trained."""

    name: Literal["single", "paper", "uniform", "paper_central", "central"]


@dataclass(frozen=True)
class Fixed:
    """The same levels of market.action at every decision."""

    name: Literal["fixed"]
    accept: Level
    forward: Level
    commit: Level


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases."""

    name: Literal["wandb"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline", "disabled", "shared"]
    group: str | None
    tags: list[str]


@dataclass(frozen=True)
class LocalTracking:
    """TensorBoard or CSV files in the run's folder, or nothing."""

    name: Literal["tensorboard", "csv", "none"]


Agents = SB3Learner | MappoLearner | RecurrentLearner | Baseline | Fixed
Tracking = Wandb | LocalTracking

_AGENTS: dict[str, type[Agents]] = {
    "ppo": SB3Learner,
    "maskable_ppo": SB3Learner,
    "mappo": MappoLearner,
    "league": MappoLearner,
    "recurrent": RecurrentLearner,
    "single": Baseline,
    "paper": Baseline,
    "uniform": Baseline,
    "paper_central": Baseline,
    "central": Baseline,
    "fixed": Fixed,
}
_TRACKING: dict[str, type[Tracking]] = {
    "wandb": Wandb,
    "tensorboard": LocalTracking,
    "csv": LocalTracking,
    "none": LocalTracking,
}


def read_agents(values: Any, place: str) -> Agents:
    """Read one file of conf/agents; its `name` says which kind it is.

    errors   SettingsError
    """
    return _read_named(_AGENTS, values, place)  # type: ignore[no-any-return]


def read_tracking(values: Any, place: str) -> Tracking:
    """Read one file of conf/tracking; its `name` says which kind it is.

    errors   SettingsError
    """
    return _read_named(_TRACKING, values, place)  # type: ignore[no-any-return]


def _read_named(kinds: Mapping[str, Any], values: Any, place: str) -> Any:
    values = plain(values, place)
    if not isinstance(values, Mapping):
        raise SettingsError(Slip(place, "", f"must be a mapping, got {show(values)}"))
    if "name" not in values:
        raise SettingsError(Slip(place, "name", f"is missing; it must be one of {', '.join(kinds)}"))
    name = values["name"]
    if not isinstance(name, str) or name not in kinds:
        raise SettingsError(Slip(place, "name", f"is {show(name)}; {did_you_mean(str(name), kinds)}"))
    return read(kinds[name], values, place)
