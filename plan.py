"""A whole run as one checked plan: every group of the config read by its type, with every slip of all of them.

Nothing heavy is imported here, so that a slip is told within a second.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from omegaconf import DictConfig

from agents.settings import Agents, Learner, MappoLearner, Tracking, read_agents, read_tracking
from settings import Range, SettingsError, Slip, plain, read

if TYPE_CHECKING:
    from envs.wwwserve.scenario import Scenario
    from market.profile import Profile
    from market.terms import Terms

GROUPS = {
    "env": "the scenario: providers, hardware, workload, network, reward",
    "market": "the numbers of the rules: prices, duel rate, slashing, timeouts",
    "agents": "who steers the providers: a learner, or a baseline to evaluate",
    "tracking": "where metrics, tables and policies are recorded",
}


@dataclass(frozen=True)
class Top:
    """conf/config.yaml: what stands above the groups."""

    seed: Annotated[int, Range(0, 2**31 - 1, "")]
    name: str | None
    resume: str | None
    output: str
    eval_seeds: Annotated[int, Range(2, 100_000, "seeds")]
    eval_first_seed: Annotated[int, Range(0, 2**31 - 1, "")]
    env: Any
    market: Any
    agents: Any
    tracking: Any


@dataclass(frozen=True)
class Plan:
    """A whole run, checked."""

    top: Top
    scenario: "Scenario"
    terms: "Terms"
    profiles: "dict[str, Profile]"
    agents: Agents
    tracking: Tracking
    config: dict[str, Any]  # as given, resolved, plain: what is saved and logged

    @property
    def name(self) -> str:
        """Name of the run and of its policy."""
        return self.top.name or f"{self.agents.name}_{self.scenario.name}"

    @property
    def school(self) -> "Scenario":
        """The scenario as a learner meets it: with the time between two decisions that it asks for."""
        asked_s = self.agents.control_s if isinstance(self.agents, Learner) else None
        return self.scenario if asked_s is None else replace(self.scenario, control_s=asked_s)


def check(config: DictConfig | Mapping[str, Any], files: Mapping[str, str] | None = None) -> Plan:
    """Turn a composed config into a checked plan.

    files    group -> its file, for errors to name, such as market -> conf/market/paper.yaml
    errors   SettingsError with every slip of every group
    """
    from envs.wwwserve import load
    from envs.wwwserve import scenario as scenarios
    from market.terms import Terms

    place = {group: (files or {}).get(group, f"conf/{group}") for group in GROUPS}
    values = plain(config, "conf/config.yaml")
    slips: list[Slip] = []

    def part(reader: Callable[[], Any]) -> Any:
        """Read one part; its slips join the others."""
        try:
            return reader()
        except SettingsError as error:
            slips.extend(error.slips)

    top = part(lambda: read(Top, values, "conf/config.yaml"))
    given = {group: values[group] for group in GROUPS if group in values}
    profiles = load.profiles()
    readers: dict[str, Callable[[Any, str], Any]] = {
        "env": lambda env, file: _read_scenario(scenarios, profiles, env, file),
        "market": lambda market, file: read(Terms, market, file),
        "agents": read_agents,
        "tracking": read_tracking,
    }
    parts = {group: part(partial(readers[group], given[group], place[group])) for group in given}
    slips += _name_slips(values.get("name")) + _policy_slips(parts.get("agents"), place["agents"])
    slips += _control_slips(parts.get("agents"), parts.get("env"), place["agents"])
    if top and top.seed == top.eval_first_seed:
        slips.append(Slip("conf/config.yaml", "seed", f"must differ from eval_first_seed, got {top.seed} for both"))
    if slips:
        raise SettingsError(*slips)
    return Plan(top, parts["env"], parts["market"], profiles, parts["agents"], parts["tracking"], values)


def _read_scenario(scenarios: Any, profiles: Any, values: Any, place: str) -> Any:
    scenario = read(scenarios.Scenario, values, place)
    scenarios.check(scenario, profiles, place)
    return scenario


def _policy_slips(agents: Any, place: str) -> list[Slip]:
    """Refuse policies to start from, or of a league, that are not there."""
    if not isinstance(agents, Learner):
        return []
    slips = []
    if agents.start is not None:
        from agents.names import folder_of

        rule = f"is {agents.start}, and there is no such trained policy; name a folder in policies_trained, or give its path"
        slips += [] if folder_of(agents.start) else [Slip(place, "start", rule)]
    if isinstance(agents, MappoLearner) and agents.league:
        slips += [slip for i, name in enumerate(agents.league.pool) for slip in _seat_slips(name, place, f"league.pool[{i}]")]
    return slips


def _seat_slips(name: str, place: str, key: str) -> list[Slip]:
    """Refuse who can take no seat in a league, by its name and its card: loading a policy would take longer than a slip may."""
    from agents.card import PolicyError, memory_of, read_card
    from agents.names import find

    try:
        found = find(name)
        memory = memory_of(read_card(found.folder)) if found.folder else None
    except PolicyError as error:
        return [Slip(place, key, f"is {name}: {str(error).removeprefix('policies: ')}")]
    rules = []
    if found.dispatch != "market":
        rules.append(f"is {name}, a scheduler in place of the market, which takes no seat in it; name a policy, such as paper")
    if memory:
        rules.append(f"is {name}, which remembers; a league has no memories for its co-players; name a policy without one")
    return [Slip(place, key, rule) for rule in rules]


def _control_slips(agents: Any, scenario: "Scenario | None", place: str) -> list[Slip]:
    """A learner's decisions must fall on rounds of upkeep, and fill the episode."""
    if not isinstance(agents, Learner) or agents.control_s is None or scenario is None:
        return []
    asked_s = agents.control_s
    whole = all(
        abs(ratio - round(ratio)) < 1e-9 and ratio >= 1 for ratio in (asked_s / scenario.tick_s, scenario.horizon_s / asked_s)
    )
    rule = f"must be a multiple of tick_s = {scenario.tick_s:g} that divides horizon_s = {scenario.horizon_s:g}, got {asked_s:g}"
    return [] if whole else [Slip(place, "control_s", rule)]


def _name_slips(name: Any) -> list[Slip]:
    """Names become folders, so they may hold no separator and not lead elsewhere."""
    if not isinstance(name, str) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return []
    rule = f"must be letters, digits, '.', '_' and '-', since it names a folder; got {name!r}"
    return [Slip("conf/config.yaml", "name", rule)]
