"""Plays one episode of a scenario under each policy and writes all of it down: `python -m agents.rehearse --help`.

What real nodes are compared with: the demand, request by request, what the hardware costs, and what the simulator makes of it. The
demand of an episode is fixed; chance in the market is not, so each policy plays it several times.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from settings import Range, SettingsError, Slip, plain, read

if TYPE_CHECKING:
    from agents.policy import Baseline
    from envs.wwwserve.batch import Batch
    from envs.wwwserve.scenario import Scenario
    from market.profile import Profile
    from market.terms import Terms

FORMAT = 1
"""Version of the file: rises when an entry changes its meaning."""
ABOUT = "Rehearse an episode: the same demand under each policy, written down for a comparison with real nodes."
EXAMPLES = {
    "env=paper-2 policies=[paper,policies_trained/ppo_wwwserve] out=paper-2.json": "two policies, 20 replays of each",
    "env=tiny policies=[] seed=7": "the demand alone",
    "env=paper-2 providers=2 profiles=[measured.yaml] load=0.5": "two nodes with a calibrated engine, half the load",
}
GROUPS = {"env": "the scenario", "market": "the rules' numbers"}
PLACE = "conf/rehearse.yaml"
STRIDE = 1 << 24
"""Draws between the market's chance of one replay and that of the next, in the same stream: more than an episode uses."""
DEMAND = ("arrival_s", "origin", "prompt_tokens", "output_tokens", "forecast_tokens", "slo_s")
COURSE = ("executor", "latency_s", "ttft_s", "status")


@dataclass(frozen=True)
class Settings:
    """conf/rehearse.yaml, beside the groups."""

    policies: list[str]
    seed: Annotated[int, Range(0, 2**31, "")]
    replays: Annotated[int, Range(1, 200, "replays")]
    providers: Annotated[int, Range(1, 4096, "providers")] | None
    profiles: list[str]
    load: Annotated[float, Range(0.001, 1000.0, "times the scenario's rates")]
    stay: bool
    out: str


@dataclass(frozen=True)
class Stage:
    """All that an episode is made of, but who steers."""

    scenario: "Scenario"
    terms: "Terms"
    profiles: "dict[str, Profile]"
    seed: int
    replays: int


def rehearse(stage: Stage, policies: "Sequence[Baseline]") -> dict[str, Any]:
    """Play the episode under every policy; without one, only the demand is worked out.

    returns  what the file holds, as plain values: demand (columns), providers, and for each policy its replays
    errors   ValueError when two plays had not the same demand, which no policy should be able to bring about
    """
    from agents.policy import load

    first = play(stage, load("single"), replays=1) if not policies else None
    played = {policy.name: play(stage, policy, replays=stage.replays) for policy in policies}
    lead = first or next(iter(played.values()))
    for name, found in played.items():
        _same_demand(lead["demand"], found["demand"], name)
    scenario = stage.scenario
    return {
        "format": FORMAT,
        "scenario": scenario.name,
        "seed": stage.seed,
        "horizon_s": scenario.horizon_s,
        "arrivals_until_s": scenario.arrivals_until_s,
        "control_s": scenario.control_s,
        "tick_s": scenario.tick_s,
        "terms": asdict(stage.terms),
        "providers": lead["providers"],
        "delay_s": lead["delay_s"],
        "demand": lead["demand"],
        "policies": {name: {key: found[key] for key in ("brain", "dispatch", "replays")} for name, found in played.items()},
    }


def play(stage: Stage, policy: "Baseline", *, replays: int) -> dict[str, Any]:
    """Let one policy play the episode `replays` times at once: replay 0 is the episode as a batch of one plays it.

    returns  demand, providers, delay_s, brain, dispatch and replays
    """
    from market.action import ACTION_NVEC, LEVELS

    batch = _raise_curtain(stage, policy.dispatch, replays)
    batch.pin(policy.brain)
    places, apart = _places(batch, stage), stage.scenario.delay_s
    rows, shape = replays * batch.providers, (replays, batch.providers, len(ACTION_NVEC))
    chosen = np.zeros((replays, len(ACTION_NVEC), LEVELS), np.int64)
    policy.policy.begin(stage.scenario.control_s)
    for _ in range(batch.steps_per_episode):
        actions = policy.policy.act(batch.observations.reshape(rows, -1), batch.masks.reshape(rows, -1)).reshape(shape)
        batch.step(actions)
        for level in range(LEVELS):
            chosen[:, :, level] += (actions == level).sum(axis=1)
    outcomes, accounts, counters = batch.outcomes(), batch.accounts(), batch.counters()
    courses, demand = [], None
    for n in range(replays):
        mine = outcomes[outcomes["network"] == n]
        found = {("provider" if name == "origin" else name): mine[name].tolist() for name in DEMAND}
        demand = demand or found
        _same_demand(demand, found, f"{policy.name}, replay {n}")
        courses.append(
            {name: _finite(mine[name]) for name in COURSE}
            | {"accounts": {name: values[n].tolist() for name, values in accounts.items()}}
            | {"counters": {name: values[n].tolist() for name, values in counters.items()}}
            | {"actions": chosen[n].tolist() if policy.brain == "policy" else None}
        )
    delay_s = [[apart[one["region"]][other["region"]] for other in places] for one in places]
    made = {"demand": demand, "providers": places, "delay_s": delay_s}
    return made | {"brain": policy.brain, "dispatch": policy.dispatch, "replays": courses}


def _raise_curtain(stage: Stage, dispatch: str, replays: int) -> "Batch":
    """Make networks that all play one episode: the first with its own chance in the market, each other with fresh one."""
    from envs.wwwserve.batch import Batch
    from envs.wwwserve.state import GOSSIP, MARKET
    from market.chance import key_of
    from market.terms import put

    batch = Batch(
        stage.scenario,
        stage.terms,
        stage.profiles,
        networks=replays,
        seed=stage.seed,
        record=True,
        dispatch=dispatch,
        autoreset=False,
    )
    for n in range(replays):
        put(batch.world.net[n], "base_key", key_of(stage.seed, 0))
        put(batch.world.net[n], "episode", 0)
    batch.reset()
    for g in range(batch.providers, replays * batch.providers):
        driver = batch.world.driver[g]
        draws = driver["draws"] if hasattr(driver, "dtype") else driver.draws
        for purpose in (MARKET, GOSSIP):
            draws[purpose] = g // batch.providers * STRIDE
    return batch


def _places(batch: "Batch", stage: Stage) -> list[dict[str, Any]]:
    """What each provider is in this episode, with the coefficients that it has drawn."""
    from envs.wwwserve.state import DRIVER, NODE, PROFILE
    from market.rule import to_array

    drivers, nodes = to_array(batch.world.driver, DRIVER), to_array(batch.world.node, NODE)
    drawn = to_array(batch.world.profile, PROFILE)
    regions, kinds = list(stage.scenario.delay_s), list(stage.scenario.kinds)
    groups = [group for group in stage.scenario.providers for _ in range(group.count)]
    out = []
    for p, group in enumerate(groups):
        values = {name: drawn[p][name].item() for name in PROFILE.names or ()}
        name = next(name for name in group.profiles if _is_of(values, stage.profiles[name]))
        source = stage.profiles[name]
        notes = {"kind": source.kind, "error": source.error, "source": source.source}
        out.append(
            {
                "profile_name": name,
                "profile": values | notes,
                "region": regions[drivers[p]["region"]],
                "demand": kinds[drivers[p]["kind"]],
                "slo_s": nodes[p]["slo_s"].item(),
            }
        )
    return out


def _is_of(values: Mapping[str, Any], profile: "Profile") -> bool:
    """Whether drawn values come from this profile: what an episode does not vary must be equal."""
    fixed = ("h_s", "kv_blocks", "max_num_seqs", "max_num_batched_tokens", "quality")
    return all(values[name] == getattr(profile, name) for name in fixed)


def _finite(column: np.ndarray) -> list[Any]:
    """A column as JSON has it: null where there is no number."""
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in column.tolist()]


def _same_demand(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Refuse two plays whose users did not ask the same."""
    for column, values in one.items():
        if values != other[column]:
            raise ValueError(f"{name}: {column} of the demand is not what the first play had; a decision must not change demand")


def arrange(scenario: "Scenario", settings: Settings, profiles: "Sequence[str]") -> "Scenario":
    """Cut a schedule to the horizon, then put in load, presence, number of providers and profiles, as the settings say.

    profiles   names to take in turn; empty: the scenario's own
    """
    end_s = scenario.horizon_s
    places = [replace(group, count=1) for group in scenario.providers for _ in range(group.count)]
    count = settings.providers or len(places)
    groups = []
    for i in range(count):
        group = places[i % len(places)]
        schedule = [(min(until, end_s), low, high) for until, low, high in group.demand.schedule]
        kept = schedule[: 1 + next((k for k, row in enumerate(schedule) if row[0] >= end_s), len(schedule))]
        rates = [(until, low * settings.load, high * settings.load) for until, low, high in kept]
        shift_s = min(group.demand.shift_s, rates[-1][0]) if rates else 0.0
        group = replace(group, demand=replace(group.demand, schedule=rates, shift_s=shift_s))
        if settings.stay:
            group = replace(group, online=replace(group.online, join_s=0.0, leave_s=None, up_s=None))
        groups.append(replace(group, profiles=[profiles[i % len(profiles)]]) if profiles else group)
    error = 0.0 if profiles else scenario.coefficient_error
    until_s = min(scenario.arrivals_until_s, end_s)
    return replace(scenario, providers=groups, arrivals_until_s=until_s, coefficient_error=error)


def prepare(values: Mapping[str, Any], files: Mapping[str, str]) -> tuple[Stage, "list[Baseline]", Path]:
    """Check all that was asked for.

    values   conf/rehearse.yaml with its groups, plain
    files    group -> its file, for errors
    errors   SettingsError
    """
    from envs.wwwserve import load
    from envs.wwwserve.scenario import Scenario, check
    from market.terms import Terms

    settings = read(Settings, {key: value for key, value in values.items() if key not in GROUPS}, PLACE)
    policies = _load(settings)
    scenario = read(Scenario, values["env"], files["env"])
    terms = read(Terms, values["market"], files["market"])
    given = [_profile(name, f"profiles[{i}]") for i, name in enumerate(settings.profiles)]
    if settings.load != 1.0 and any(group.demand.trace for group in scenario.providers):
        raise SettingsError(Slip(PLACE, "load", f"must be 1 with a recorded trace, got {settings.load:g}"))
    scenario = arrange(scenario, settings, [name for name, _ in given])
    profiles = load.profiles({name for group in scenario.providers for name in group.profiles}) | dict(given)
    check(scenario, profiles, files["env"])
    return Stage(scenario, terms, profiles, settings.seed, settings.replays), policies, Path(settings.out)


def _profile(name: str, key: str) -> "tuple[str, Profile]":
    """Read a serving profile by name, or from a YAML file."""
    import yaml

    from envs.wwwserve import load
    from market.profile import Profile

    if not name.endswith((".yaml", ".yml")):
        return name, read(Profile, load.values("serving", name), f"conf/serving/{name}.yaml")
    try:
        values = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(Slip(PLACE, key, f"cannot be read: {str(error).splitlines()[0]}")) from None
    return name, read(Profile, values, name)


def _load(settings: Settings) -> "list[Baseline]":
    """Load the policies; two of one name cannot be told apart in the file."""
    from agents.card import PolicyError
    from agents.policy import load

    policies, slips = [], []
    for i, name in enumerate(settings.policies):
        try:
            policies.append(load(name, seed=settings.seed))
        except PolicyError as error:
            slips.append(Slip(PLACE, f"policies[{i}]", str(error).removeprefix("policies: ")))
    names = [policy.name for policy in policies]
    slips += [Slip(PLACE, "policies", f"names {name} twice") for name in sorted(set(names)) if names.count(name) > 1]
    if slips:
        raise SettingsError(*slips)
    return policies


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    from compose import compose, help_text

    if {"-h", "--help"} & set(words):
        print(help_text("python -m agents.rehearse", ABOUT, EXAMPLES, GROUPS), end="")
        return 0
    try:
        composed = compose(words, "rehearse")
        try:
            stage, policies, path = prepare(plain(composed.values, PLACE), composed.files)
        except SettingsError as error:
            raise composed.blame(error.slips) from None
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    from agents.provenance import source
    from agents.publish import write_whole

    content = rehearse(stage, policies) | {"source": source()._asdict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, allow_nan=False) + "\n").encode())
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
