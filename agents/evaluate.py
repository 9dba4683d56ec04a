"""Plays policies on the same seeds of a scenario and says how they compare: `python -m agents.evaluate --help`.

One protocol for every number that is published (docs/metrics.md). Environments are handed in, or made here for the command line.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents import protocol
from settings import Range, SettingsError, Slip, plain, read

if TYPE_CHECKING:  # the parts that are slow to import wait until the settings are checked
    from agents.policy import Baseline
    from agents.scores import Axis, Evaluation, Played, Round
    from envs.wwwserve.scenario import Scenario

ABOUT = "Evaluate policies on the same seeds of a scenario: SLO attainment, latency and the market's own figures, with intervals."
EXAMPLES = {
    "env=paper-2 policies=[single,paper,paper_central,central,policies_trained/ppo_wwwserve]": "a trained policy and all baselines",
    "env=wwwserve policies=[paper,ppo_wwwserve] seeds=50": "more seeds, narrower intervals",
    "policies=[paper,uniform,fixed:3-2-2] market.duel_rate=0": "levels of accept, forward, commit; other terms",
    "env=paper-1 env.providers.0.count=16 output=/tmp/many": "another population; where the files go",
    "--suite paper": "every experiment of the paper, by the protocol; --suite --help",
}
GROUPS = {"env": "the scenario", "market": "the rules' numbers"}
WIDTH = 150
"""Columns of a table where no terminal says how many there are."""
WEALTH_SAMPLES = 150


class Scene(Protocol):
    """What an evaluation reads of a scenario."""

    @property
    def name(self) -> str:
        """Its name in conf/env."""

    @property
    def horizon_s(self) -> float:
        """Length of an episode."""

    @property
    def control_s(self) -> float:
        """Time between two decisions."""


class Market(Protocol):
    """What an evaluation asks of a batch of networks that records its requests and does not start anew at the end."""

    networks: int
    providers: int
    steps_per_episode: int
    observations: NDArray[np.float32]  # (networks, providers, OBSERVATION_SIZE)
    masks: NDArray[np.int8]  # (networks, providers, MASK_SIZE)
    rewards: NDArray[np.float64]  # (networks, providers)

    @property
    def scenario(self) -> Scene:
        """What is played."""

    def pin(self, brain: str, providers: list[int]) -> None:
        """Let providers follow "paper" rules or the "policy" whose actions are given."""

    def step(self, actions: NDArray[np.int64]) -> None:
        """Let one control step pass."""

    def outcomes(self) -> np.ndarray:
        """One row a request, with `network` and the fields of metrics.OUTCOME_FIELDS."""

    def accounts(self) -> Mapping[str, NDArray[np.float64]]:
        """(networks, providers) credits; `wealth` among them."""

    def counters(self) -> Mapping[str, NDArray[np.int64]]:
        """(networks, providers) counts."""


MakeMarket = Callable[..., Market]
"""make(networks=SEEDS, seed=FIRST_SEED, dispatch=DISPATCH): network i of a seed plays the same episode for every policy."""


@dataclass(frozen=True)
class Settings:
    """conf/evaluate.yaml, beside the groups."""

    policies: list[str]
    seeds: Annotated[int, Range(2, 100_000, "seeds")]
    first_seed: Annotated[int, Range(0, 2**31, "")]
    output: str


def evaluate(
    make: MakeMarket, policies: "Sequence[Baseline]", seeds: int, first_seed: int, *, on_step: Callable[[], None] | None = None
) -> "Evaluation":
    """Play every policy on the same seeds.

    make        a market of all seeds for one dispatch; see MakeMarket
    policies    of agents.policy.load, with different names
    seeds       episodes of each policy, >= 2
    first_seed  that no training run has used
    on_step     called after each step of each policy, for a progress bar
    errors      ValueError for fewer than 2 seeds, two policies of one name, or an episode without a due request
    """
    names = [policy.name for policy in policies]
    if not names:
        raise ValueError("policies: none given; name at least one, such as paper")
    if len(set(names)) < len(names):
        raise ValueError(f"policies: {', '.join(names)} are not all different; give each once, under a name of its own")
    if seeds < 2:
        raise ValueError(f"seeds must be >= 2 for an interval, got {seeds}")
    rounds = [play(make(networks=seeds, seed=first_seed, dispatch=policy.dispatch), policy, on_step=on_step) for policy in policies]
    return assemble(rounds, first_seed)


def play(market: Market, policy: "Baseline", *, on_step: Callable[[], None] | None = None) -> "Round":
    """Let one policy play one episode of every network of a fresh market, and measure it.

    errors   ValueError for an episode without a due request
    """
    from agents.scores import Round

    course = _play(market, policy, on_step)
    axis = _axis(market.outcomes(), market.scenario.horizon_s)
    played = _measure(market, policy, course, axis)
    return Round(market.scenario.name, market.scenario.horizon_s, axis, np.array(course.times_s), played)


def assemble(rounds: "Sequence[Round]", first_seed: int) -> "Evaluation":
    """Put rounds of the same episodes side by side; the first one gives axes and scenario."""
    from agents.scores import Evaluation

    first = rounds[0]
    return Evaluation(
        scenario=first.scenario,
        first_seed=first_seed,
        seeds=len(first.played.curve),
        horizon_s=first.horizon_s,
        thresholds=first.axis.thresholds,
        relative=first.axis.relative,
        slo=first.axis.slo,
        times_s=first.times_s,
        played={one.played.name: one.played for one in rounds},
    )


@dataclass(frozen=True)
class _Course:
    """What is noted while a policy plays."""

    rewards: NDArray[np.float64]  # (networks, providers) summed
    times_s: list[float]
    wealth: list[NDArray[np.float64]]  # (networks, providers) at each time


def _play(market: Market, policy: "Baseline", on_step: Callable[[], None] | None) -> _Course:
    """Let a policy steer all providers of all networks for one episode."""
    from agents.seats import pins

    for brain, seats in pins(policy, market.providers):
        market.pin(brain, seats)
    shape = (market.networks, market.providers, 3)
    course = _Course(np.zeros(shape[:2]), [0.0], [np.array(market.accounts()["wealth"])])
    every = max(1, market.steps_per_episode // WEALTH_SAMPLES)
    rows = market.networks * market.providers
    policy.policy.begin(market.scenario.control_s)
    for step in range(1, market.steps_per_episode + 1):
        actions = policy.policy.act(market.observations.reshape(rows, -1), market.masks.reshape(rows, -1))
        market.step(actions.reshape(shape))
        course.rewards[:] += market.rewards
        if step % every == 0 or step == market.steps_per_episode:
            course.times_s.append(step * market.scenario.control_s)
            course.wealth.append(np.array(market.accounts()["wealth"]))
        if on_step is not None:
            on_step()
    return course


def _axis(outcomes: np.ndarray, horizon_s: float) -> "Axis":
    """Choose thresholds as shares of the SLO, in seconds where all requests share one; all of them fall due."""
    from agents.scores import Axis

    shares = np.linspace(*protocol.THRESHOLDS)
    slo = outcomes["slo_s"]
    if slo.min() == slo.max():
        return Axis(shares[shares * slo[0] < 0.9 * horizon_s] * slo[0], relative=False, slo=float(slo[0]))
    return Axis(shares[shares * slo.max() < 0.9 * horizon_s], relative=True, slo=1.0)


def _measure(market: Market, policy: "Baseline", course: _Course, axis: "Axis") -> "Played":
    """Measure every network of a played market."""
    from agents import metrics
    from agents.scores import Played

    horizon, outcomes = market.scenario.horizon_s, market.outcomes()
    accounts, counters = market.accounts(), market.counters()
    found: list[dict[str, float]] = []
    curves, latencies, seats, times = [], [], [], []
    for n in range(market.networks):
        mine = outcomes[outcomes["network"] == n]
        seats.append(metrics.measure_seats(mine, market.providers, horizon_s=horizon))
        times.append(metrics.latency_over_time(mine, horizon))
        counts = {name: values[n] for name, values in counters.items()}
        economy = metrics.measure_market(wealth=accounts["wealth"][n], rewards=course.rewards[n], counters=counts)
        found.append(metrics.measure(mine, horizon_s=horizon) | economy)
        curves.append(metrics.attainment_curve(mine, axis.thresholds, horizon, relative=axis.relative))
        latencies.append(metrics.latencies(mine, horizon))
    card = getattr(policy.policy, "card", None)
    return Played(
        name=policy.name,
        brain=policy.brain,
        dispatch=policy.dispatch,
        agent_steps=card["training"]["agent_steps"] if card else None,
        metrics={name: np.array([row[name] for row in found]) for name in found[0]},
        curve=np.array(curves),
        latencies_s=tuple(latencies),
        over_time=np.array(times),
        wealth=np.array(course.wealth),
        providers={
            **{name: np.asarray(values, np.float64) for name, values in {**accounts, **counters}.items()},
            **{name: np.array([row[name] for row in seats]) for name in seats[0]},
            "reward": course.rewards,
            "earned": np.array(accounts["wealth"]) - course.wealth[0],
        },
    )


def write(evaluation: "Evaluation", folder: Path, **more: Any) -> list[Path]:
    """Write evaluation.json, marl_eval.json and report.png into a folder, each in one move.

    more     entries of evaluation.json to add, such as config and source
    returns  the three paths
    """
    from agents.report import draw
    from agents.scores import marl_eval, to_json, write_json

    paths = [folder / "evaluation.json", folder / "marl_eval.json", folder / "report.png"]
    write_json(paths[0], to_json(evaluation, **more))
    write_json(paths[1], marl_eval(evaluation, "wwwserve"))
    draw(evaluation, paths[2])
    return paths


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    from compose import compose, help_text

    if words[:1] == ["--suite"]:
        from agents import suite

        return suite.main(words[1:])

    if {"-h", "--help"} & set(words):
        print(help_text("python -m agents.evaluate", ABOUT, EXAMPLES, GROUPS), end="")
        return 0
    try:
        _run(compose(words, "evaluate"))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(composed: Any) -> None:
    """Check everything that was asked for, then play, show and write."""
    values = plain(composed.values, "conf/evaluate.yaml")
    own = {key: value for key, value in values.items() if key not in GROUPS}
    try:
        settings = read(Settings, own, "conf/evaluate.yaml")
        policies = _load(settings)
        scenario, make = _market(values, composed.files)
    except SettingsError as error:
        raise composed.blame(error.slips) from None
    from rich.console import Console

    from agents.progress import CountingProgress
    from agents.provenance import source
    from agents.scores import table

    with CountingProgress("evaluate", len(policies) * scenario.steps) as progress:
        evaluation = evaluate(make, policies, settings.seeds, settings.first_seed, on_step=progress.advance)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table(evaluation))
    for path in write(evaluation, Path(settings.output), config=values, source=source()._asdict()):
        print(f"wrote {path}")


def _load(settings: Settings) -> "list[Baseline]":
    from agents.card import PolicyError
    from agents.policy import load

    policies, slips = [], []
    for i, name in enumerate(settings.policies):
        try:
            policies.append(load(name, seed=settings.first_seed))
        except PolicyError as error:
            slips.append(Slip("conf/evaluate.yaml", f"policies[{i}]", str(error).removeprefix("policies: ")))
    names = [policy.name for policy in policies]
    slips += [Slip("conf/evaluate.yaml", "policies", f"names {name} twice") for name in sorted(set(names)) if names.count(name) > 1]
    slips += [] if settings.policies else [Slip("conf/evaluate.yaml", "policies", "must name at least one, such as paper")]
    if slips:
        raise SettingsError(*slips)
    return policies


def scene(words: Sequence[str]) -> "tuple[dict[str, Any], Scenario, MakeMarket]":
    """Compose overrides into a scenario: the config's values, the scenario, and what makes its markets.

    errors   SettingsError
    """
    from compose import compose

    composed = compose(words, "evaluate")
    values = plain(composed.values, "conf/evaluate.yaml")
    try:
        scenario, make = _market(values, composed.files)
    except SettingsError as error:
        raise composed.blame(error.slips) from None
    return values, scenario, make


def _market(values: Mapping[str, Any], files: Mapping[str, str]) -> "tuple[Scenario, MakeMarket]":
    """Read scenario and terms; give what makes their markets."""
    from envs.wwwserve import load
    from envs.wwwserve.scenario import Scenario, check
    from market.terms import Terms

    scenario = read(Scenario, values["env"], files["env"])
    terms = read(Terms, values["market"], files["market"])
    profiles = load.profiles({name for group in scenario.providers for name in group.profiles})
    check(scenario, profiles, files["env"])

    def make(*, networks: int, seed: int, dispatch: str) -> Market:
        from envs.wwwserve.batch import Batch

        return Batch(scenario, terms, profiles, networks=networks, seed=seed, dispatch=dispatch, record=True, autoreset=False)

    return scenario, make


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
