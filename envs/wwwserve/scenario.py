"""Scenarios: what a conf/env file may say, checked, and turned into the static tables that the simulated world reads."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np

from envs.wwwserve import lengths, traces
from envs.wwwserve.state import KIND, NEVER, PLACE, QUANTILE, SEGMENTS, SETTING, TRACE
from market import provider
from market.profile import Profile
from market.profile import to_record as to_profile
from market.provider import NODE
from market.rule import COMPILED, records
from market.serving import PROFILE
from market.terms import MICRO, Range, Terms, put, to_record
from settings import SettingsError, Slip, did_you_mean

Time = Annotated[float, Range(0.0, 1e7, "s")]
Span = Annotated[float, Range(1e-3, 1e7, "s")]
Share = Annotated[float, Range(0.0, 1.0, "share")]
Weight = Annotated[float, Range(0.0, 1e6, "reward")]
Count = Annotated[int, Range(1, 100_000, "count")]
DISPATCHES = ("market", "paper_central", "central")
LEAST_BLOCKS = 8
"""KV blocks below which an engine is none (market/profile.py)."""


@dataclass(frozen=True)
class Reward:
    """Weights of the parts of a provider's reward."""

    value: Weight  # of an own request attained
    penalty: Weight  # of an own request missed
    exchange: Weight  # of a credit of own wealth
    energy: Weight  # of a token executed
    social: Share  # 0 = selfish, 1 = one team


@dataclass(frozen=True)
class Kind:
    """A kind of demand: how long its requests are, and what its users expect."""

    lengths: str  # a table of envs/wwwserve/lengths
    slo_s: Span
    max_tokens: Count


@dataclass(frozen=True)
class Burst:
    """A two-state modulated Poisson process."""

    factor: Annotated[float, Range(1.0, 1000.0, "ratio")]  # rate in a burst over rate in calm
    burst_s: Span  # mean length of a burst
    calm_s: Span  # mean time between bursts


@dataclass(frozen=True)
class Demand:
    """When a provider's users ask."""

    unit: Literal["requests_per_s", "share_of_capacity"]
    schedule: list[tuple[Time, Annotated[float, Range(0.0, 1000.0, "rate")], Annotated[float, Range(0.0, 1000.0, "rate")]]]
    shift_s: Time  # each provider begins the schedule at a random time up to this
    gap_cv: Annotated[float, Range(0.05, 20.0, "ratio")]  # coefficient of variation of gaps; 1 = Poisson
    burst: Burst | None
    trace: str | None  # CSV file of arrival_s, prompt_tokens, output_tokens; instead of schedule and lengths


@dataclass(frozen=True)
class Online:
    """When a provider is there."""

    join_s: Time
    leave_s: Time | None
    up_s: Span | None  # mean time until a crash
    down_s: Span  # mean time until it is back


@dataclass(frozen=True)
class Standing:
    """What a provider brings to the market, and whom it holds with."""

    wealth: Annotated[float, Range(0.0, 1e6, "ratio")]  # its first credit and stake over those of the terms
    engine: Share  # share of the profile's engine that is its own; 0: it has none, and only asks
    coalition: str | None  # a judge votes for its fellow, whatever the answers are


@dataclass(frozen=True)
class Group:
    """Providers of one sort; each draws its own profile, region and kind of demand, anew each episode."""

    count: Annotated[int, Range(1, 4096, "providers")]
    profiles: list[str]
    regions: list[str]
    kinds: list[str]
    demand: Demand
    online: Online
    standing: Standing


@dataclass(frozen=True)
class Scenario:
    """One conf/env file."""

    name: str
    horizon_s: Span  # length of an episode
    arrivals_until_s: Span  # no request arrives after this
    control_s: Span  # time between two decisions
    tick_s: Span  # time between two rounds of upkeep: stake, deadlines, waiting work, the paper's rules
    requests_max: Annotated[int, Range(4, 1_000_000, "requests")]  # requests that a network can hold
    duels_max: Count  # duels a network can have within duel_ttl_s
    length_error: Annotated[float, Range(0.0, 3.0, "sigma")] | None  # of the length predictor; null: forecast = max_tokens
    coefficient_error: Share  # engine coefficients vary by +- this an episode
    reward: Reward
    delay_s: dict[str, dict[str, Annotated[float, Range(0.0, 60.0, "s")]]]  # one way, between regions
    kinds: dict[str, Kind]
    providers: list[Group]

    @property
    def steps(self) -> int:
        """Decisions of an episode."""
        return round(self.horizon_s / self.control_s)

    @property
    def population(self) -> int:
        """Providers of a network."""
        return sum(group.count for group in self.providers)


def check(scenario: Scenario, profiles: dict[str, Profile], place: str) -> None:
    """Check what types cannot: names that refer to each other, schedules that rise, arrivals inside the horizon.

    errors   SettingsError with every slip
    """
    slips = [Slip(place, key, rule) for key, rule in _slips(scenario, profiles)]
    if slips:
        raise SettingsError(*slips)


def _slips(scenario: Scenario, profiles: dict[str, Profile]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    if scenario.arrivals_until_s > scenario.horizon_s:
        out.append(("arrivals_until_s", f"must be <= horizon_s = {scenario.horizon_s:g}, got {scenario.arrivals_until_s:g}"))
    if abs(scenario.steps * scenario.control_s - scenario.horizon_s) > 1e-6:
        out.append(("horizon_s", f"must be a multiple of control_s = {scenario.control_s:g}, got {scenario.horizon_s:g}"))
    if abs(round(scenario.control_s / scenario.tick_s) * scenario.tick_s - scenario.control_s) > 1e-9:
        out.append(("control_s", f"must be a multiple of tick_s = {scenario.tick_s:g}, got {scenario.control_s:g}"))
    if not scenario.providers:
        out.append(("providers", "must name at least one group of providers"))
    for origin in scenario.delay_s:
        said = ", ".join(scenario.delay_s[origin]) or "none"
        missing = [other for other in scenario.delay_s if other not in scenario.delay_s[origin]]
        out += [
            (f"delay_s.{origin}", f"must say the delay to {other}, got {said}: no region may be unreachable") for other in missing
        ]
        strange = [other for other in scenario.delay_s[origin] if other not in scenario.delay_s]
        out += [(f"delay_s.{origin}.{other}", f"is no region; {did_you_mean(other, scenario.delay_s)}") for other in strange]
    for name, kind in scenario.kinds.items():
        if kind.lengths not in lengths.names():
            hint = did_you_mean(kind.lengths, lengths.names())
            out.append((f"kinds.{name}.lengths", f"names no length table: {kind.lengths!r}; {hint}"))
    for i, group in enumerate(scenario.providers):
        out += [(f"providers[{i}].{key}", rule) for key, rule in _group_slips(group, scenario, profiles)]
    return out


def _group_slips(group: Group, scenario: Scenario, profiles: dict[str, Profile]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    known = {"profiles": list(profiles), "regions": list(scenario.delay_s), "kinds": list(scenario.kinds)}
    for key, names in known.items():
        chosen: list[str] = getattr(group, key)
        if not chosen:
            out.append((key, "must name at least one"))
        out += [(key, f"names none of the {key} known: {one!r}; {did_you_mean(one, names)}") for one in chosen if one not in names]
    leave_s = group.online.leave_s
    if leave_s is not None and leave_s <= group.online.join_s:
        out.append(("online.leave_s", f"must be > join_s = {group.online.join_s:g}, got {leave_s:g}"))
    out += _standing_slips(group, [profiles[name] for name in group.profiles if name in profiles])
    return out + _demand_slips(group.demand, group.count, scenario.horizon_s)


def _standing_slips(group: Group, profiles: list[Profile]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    standing = group.standing
    if standing.coalition == "":
        out.append(("standing.coalition", "must be a name, or null for none, got ''"))
    if standing.engine == 0.0:
        if group.demand.unit == "share_of_capacity" and group.demand.trace is None:
            out.append(("demand.unit", "must be requests_per_s where standing.engine = 0, got share_of_capacity"))
        return out
    least = max((max(LEAST_BLOCKS / profile.kv_blocks, 1.0 / profile.max_num_seqs) for profile in profiles), default=0.0)
    if standing.engine < least:
        rule = f"must leave each profile a request and {LEAST_BLOCKS} KV blocks, so be >= {least:.3g}, or be 0"
        out.append(("standing.engine", f"{rule}, got {standing.engine:g}"))
    return out


def _demand_slips(demand: Demand, count: int, horizon_s: float) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    if demand.trace is not None:
        try:
            traces.deal(demand.trace, count)
        except ValueError as error:
            out.append(("demand.trace", str(error)))
        return out
    times = [until for until, _, _ in demand.schedule]
    if not times:
        return [("demand", "must have a schedule or a trace")]
    if times != sorted(set(times)):
        out.append(("demand.schedule", f"must rise in time, got {times}"))
    if times[-1] > horizon_s:
        out.append(("demand.schedule", f"must end within horizon_s = {horizon_s:g}, got {times[-1]:g}"))
    if demand.shift_s > times[-1]:
        out.append(("demand.shift_s", f"must be <= {times[-1]:g}, the end of the schedule that it rotates, got {demand.shift_s:g}"))
    if len(times) > SEGMENTS:
        out.append(("demand.schedule", f"must have at most {SEGMENTS} pieces, got {len(times)}"))
    for j, (_, low, high) in enumerate(demand.schedule):
        if low > high:
            out.append((f"demand.schedule[{j}]", f"must have low <= high, got {low:g} > {high:g}"))
    return out


def static_tables(
    scenario: Scenario, terms: Terms, profiles: dict[str, Profile], networks: int, dispatch: str, log: int
) -> dict[str, Any]:
    """Make the static tables of a world; the sizes of the others stand in `setting`."""
    names = sorted({name for group in scenario.providers for name in group.profiles})
    kinds = list(scenario.kinds)
    regions = list(scenario.delay_s)
    choice: list[int] = []
    trace_rows: list[np.ndarray] = []
    place = records(PLACE, scenario.population)
    coalitions = sorted({group.standing.coalition for group in scenario.providers if group.standing.coalition is not None})
    p = 0
    for group in scenario.providers:
        spans = {}
        for key, table in (("profile", names), ("region", regions), ("class", kinds)):
            wanted = {"profile": group.profiles, "region": group.regions, "class": group.kinds}[key]
            spans[key] = (len(choice), len(wanted))
            choice += [table.index(name) for name in wanted]
        dealt = traces.deal(group.demand.trace, group.count) if group.demand.trace else [np.zeros((0, 3))] * group.count
        for mine in dealt:
            _fill_place(place[p], group, spans, sum(map(len, trace_rows)), len(mine))
            _fill_standing(place[p], group.standing, terms, coalitions)
            trace_rows.append(mine)
            p += 1
    tables = _length_tables([scenario.kinds[name].lengths for name in kinds])
    return {
        "setting": _setting(scenario, networks, dispatch, log, tables.shape[1]),
        "terms": to_record(terms, scenario.population),
        "place": place,
        "choice": _column(choice, int),
        "profiles": _table(PROFILE, [asdict(profiles[n]) for n in names]),
        "kind": _table(KIND, [_kind_row(scenario.kinds[name], i) for i, name in enumerate(kinds)]),
        "trace": _trace_table(trace_rows),
        "length": _table(QUANTILE, [dict(zip(QUANTILE.names or (), row, strict=True)) for row in tables.reshape(-1, 3).tolist()]),
        "delay": _column([scenario.delay_s[a][b] for a in regions for b in regions], float),
    }


def _kind_row(kind: Kind, table: int) -> dict[str, Any]:
    return {"table": table, "slo_s": kind.slo_s, "max_tokens": kind.max_tokens}


def _table(dtype: np.dtype, rows: list[dict[str, Any]]) -> Any:
    """Make records of rows of values by name; names that the layout does not have are left out."""
    table = records(dtype, len(rows))
    for i, row in enumerate(rows):
        for name in dtype.names or ():
            put(table[i], name, row[name])
    return table


def _column(values: list[Any], kind: type) -> Any:
    return np.array(values, np.int64 if kind is int else np.float64) if COMPILED else [kind(value) for value in values]


def _trace_table(rows: list[np.ndarray]) -> Any:
    joined = np.concatenate(rows) if rows else np.zeros((0, 3))
    columns = [{"arrival_s": float(a), "prompt_tokens": int(p), "output_tokens": int(o)} for a, p, o in joined]
    return _table(TRACE, columns) if columns else records(TRACE, 1)


def _length_tables(names: list[str]) -> np.ndarray:
    """Stack length tables of unequal length; short ones repeat their last row at p just above 1, which is never drawn."""
    tables = [lengths.load(name) for name in names]
    rows = max(len(table) for table in tables)
    out = np.empty((len(tables), rows, 3))
    for i, table in enumerate(tables):
        out[i, : len(table)] = table
        for extra in range(len(table), rows):
            out[i, extra] = table[-1]
            out[i, extra, 0] = 1.0 + 1e-9 * (extra - len(table) + 1)
    return out


def _fill_place(place: Any, group: Group, spans: dict[str, tuple[int, int]], trace_first: int, trace_count: int) -> None:
    demand, online = group.demand, group.online
    burst = demand.burst or Burst(1.0, 1.0, 1.0)
    values: dict[str, Any] = {f"{key}_first": first for key, (first, _) in spans.items()}
    values |= {f"{key}_count": count for key, (_, count) in spans.items()}
    values |= {"segments": len(demand.schedule), "of_capacity": int(demand.unit == "share_of_capacity"), "shift_s": demand.shift_s}
    values |= {"gap_shape": 1.0 / demand.gap_cv**2 if demand.gap_cv != 1.0 else 1.0}
    values |= {"burst_factor": burst.factor, "burst_s": burst.burst_s, "calm_s": burst.calm_s}
    values |= {"trace_first": trace_first, "trace_count": trace_count, "join_s": online.join_s, "down_s": online.down_s}
    values |= {
        "leave_s": online.leave_s if online.leave_s is not None else NEVER,
        "up_s": online.up_s if online.up_s is not None else NEVER,
    }
    for name, value in values.items():
        put(place, name, value)
    for i, row in enumerate(demand.schedule):
        for name, value in zip(("until_s", "low", "high"), row, strict=True):
            column = place[name] if COMPILED else getattr(place, name)
            column[i] = float(value)


def _fill_standing(place: Any, standing: Standing, terms: Terms, coalitions: list[str]) -> None:
    put(place, "credit_micro", round(terms.initial_credit * standing.wealth * MICRO))
    put(place, "stake_micro", round(terms.initial_stake * standing.wealth * MICRO))
    put(place, "engine", standing.engine)
    put(place, "coalition", coalitions.index(standing.coalition) + 1 if standing.coalition is not None else 0)


def _setting(scenario: Scenario, networks: int, dispatch: str, log: int, length_rows: int) -> Any:
    if dispatch not in DISPATCHES:
        raise ValueError(f"dispatch must be one of {', '.join(DISPATCHES)}, got {dispatch!r}")
    reward = {f.name: float(getattr(scenario.reward, f.name)) for f in fields(Reward)}
    row = {
        "networks": networks,
        "providers": scenario.population,
        "requests": scenario.requests_max,
        "events": 2 * scenario.requests_max + scenario.duels_max,
        "duels": scenario.duels_max,
        "log": log,
        "regions": len(scenario.delay_s),
        "length_rows": length_rows,
        "steps": scenario.steps,
        "ticks": round(scenario.control_s / scenario.tick_s),
        "tick_s": float(scenario.tick_s),
        "horizon_s": float(scenario.horizon_s),
        "arrivals_until_s": float(scenario.arrivals_until_s),
        "length_error": -1.0 if scenario.length_error is None else float(scenario.length_error),
        "coefficient_error": float(scenario.coefficient_error),
        "dispatch": DISPATCHES.index(dispatch),
        "autoreset": 1,
    }
    return _table(SETTING, [row | reward])


def most_requests(scenario: Scenario, profiles: dict[str, Profile]) -> int:
    """Bound the user requests of an episode from above with a margin that Poisson noise does not cross (8 sigma)."""
    total = 0.0
    for group in scenario.providers:
        if group.demand.trace:
            total += len(traces.load(group.demand.trace))
            continue
        unit = 1.0
        if group.demand.unit == "share_of_capacity":
            chosen = [(profiles[name], scenario.kinds[kind]) for name in group.profiles for kind in group.kinds]
            unit = max(_requests_per_s(profile, kind, scenario.coefficient_error) for profile, kind in chosen)
        burst = group.demand.burst
        # An episode that is all burst is the worst case of a modulated process.
        unit *= burst.factor * (burst.burst_s + burst.calm_s) / (burst.factor * burst.burst_s + burst.calm_s) if burst else 1.0
        begin = 0.0
        for until, _, high in group.demand.schedule:
            total += group.count * unit * high * (until - begin)
            begin = until
    return int(1.2 * total + 50.0 * math.sqrt(total) + 100)


def _requests_per_s(profile: Profile, kind: Kind, error: float) -> float:
    """Requests per s that are a load of 1 (as at the start of an episode), were all coefficients at their fastest."""
    table = lengths.load(kind.lengths)
    node = records(NODE, 1)[0]
    forecast = min(float(np.trapezoid(table[:, 2], table[:, 0])), float(kind.max_tokens))
    put(node, "mean_prompt", float(np.trapezoid(table[:, 1], table[:, 0])))
    put(node, "mean_forecast", forecast)
    provider.size_up(node, to_profile(profile)[0])
    capacity = float(node["capacity_tps"] if COMPILED else node.capacity_tps)
    return capacity / forecast / max(1.0 - error, 0.1) ** 2
