"""Scenarios: what ships can be played, and every slip is refused with its place, rule, value and way out."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Demand, Scenario, check, most_requests
from envs.wwwserve.state import STATE
from market.rule import to_array
from settings import SettingsError, read
from tests.envs.wwwserve.play import SCENARIOS, make

PROFILES = load.profiles()
Change = Callable[[dict[str, Any]], object]


def refusal(change: Change) -> str:
    """What is said of the tiny scenario after a change to its values."""
    values = copy.deepcopy(load.values("env", "tiny"))
    change(values)
    with pytest.raises(SettingsError) as caught:
        check(read(Scenario, values, "env/tiny.yaml"), PROFILES, "env/tiny.yaml")
    return str(caught.value)


def put(*path: str | int, value: Any) -> Change:
    """A change that sets one value; the path's last word may be new."""

    def change(values: dict[str, Any]) -> None:
        place: Any = values
        for word in path[:-1]:
            place = place[word]
        place[path[-1]] = value

    return change


GROUP = ("providers", 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            put(*GROUP, "profiles", value=["cpu_tny"]),
            "providers[0].profiles names none of the profiles known: 'cpu_tny'; did you mean cpu_tiny?",
        ),
        (put(*GROUP, "profiles", value=[]), "providers[0].profiles must name at least one"),
        (put(*GROUP, "kinds", value=["chat"]), "providers[0].kinds names none of the kinds known: 'chat'"),
        (put(*GROUP, "regions", value=["mars"]), "providers[0].regions names none of the regions known: 'mars'"),
        (
            put("delay_s", value={"lab": {"lab": 0}, "moon": {"lab": 1, "moon": 0}}),
            "delay_s.lab must say the delay to moon, got lab: no region may be unreachable",
        ),
        (put("delay_s", "lab", "labb", value=1.0), "delay_s.lab.labb is no region; did you mean lab?"),
        (put("delay_s", "lab", "lab", value=-1.0), "delay_s.lab.lab"),
        (put(*GROUP, "demand", "schedule", value=[[45, -0.5, 2.0]]), "providers[0].demand.schedule[0][1]"),
        (
            put(*GROUP, "demand", "schedule", value=[[45, 2.0, 0.5]]),
            "providers[0].demand.schedule[0] must have low <= high, got 2 > 0.5",
        ),
        (
            put(*GROUP, "demand", "schedule", value=[[30, 0, 1], [20, 0, 1]]),
            "providers[0].demand.schedule must rise in time, got [30",
        ),
        (
            put(*GROUP, "demand", "schedule", value=[[61, 0, 1]]),
            "providers[0].demand.schedule must end within horizon_s = 60, got 61",
        ),
        (put(*GROUP, "demand", "schedule", value=[[t + 1, 0, 1] for t in range(25)]), "must have at most 24 pieces, got 25"),
        (put(*GROUP, "demand", "schedule", value=[]), "providers[0].demand must have a schedule or a trace"),
        (
            put(*GROUP, "demand", "shift_s", value=46),
            "providers[0].demand.shift_s must be <= 45, the end of the schedule that it rotates, got 46",
        ),
        (put(*GROUP, "demand", "unit", value="requests"), "providers[0].demand.unit"),
        (
            put(*GROUP, "demand", "trace", value="nowhere.csv"),
            "providers[0].demand.trace nowhere.csv: no such trace; give one of azure-conversation, servegen-reasoning, or",
        ),
        (put(*GROUP, "online", "leave_s", value=0), "providers[0].online.leave_s must be > join_s = 0, got 0"),
        (put(*GROUP, "standing", "wealth", value=-0.1), "providers[0].standing.wealth"),
        (
            put(*GROUP, "standing", "coalition", value=""),
            "providers[0].standing.coalition must be a name, or null for none, got ''",
        ),
        (
            put(*GROUP, "standing", "engine", value=0.1),
            "providers[0].standing.engine must leave each profile a request and 8 KV blocks, so be >= 0.125, or be 0, got 0.1",
        ),
        (
            put(*GROUP, "standing", "engine", value=0.0),
            "providers[0].demand.unit must be requests_per_s where standing.engine = 0, got share_of_capacity",
        ),
        (lambda values: values["providers"][0].pop("standing"), "providers[0].standing"),
        (put(*GROUP, "count", value=0), "providers[0].count"),
        (put("providers", value=[]), "providers must name at least one group of providers"),
        (put("horizon_s", value=60.5), "horizon_s must be a multiple of control_s = 1, got 60.5"),
        (put("horizon_s", value=-1), "horizon_s"),
        (put("control_s", value=1.5), "control_s must be a multiple of tick_s = 1, got 1.5"),
        (put("arrivals_until_s", value=61), "arrivals_until_s must be <= horizon_s = 60, got 61"),
        (
            put("kinds", "reasoning", "lengths", value="reasonning"),
            "kinds.reasoning.lengths names no length table: 'reasonning'; did you mean reasoning?",
        ),
        (put("kinds", "reasoning", "slo_s", value=float("nan")), "kinds.reasoning.slo_s"),
        (put("requests_max", value=1e400), "requests_max"),
        (put("reward", "social", value=1.5), "reward.social"),
        (put("rewards", value=1), "rewards"),
        (lambda values: values.pop("tick_s"), "tick_s"),
        (put("name", value=None), "name"),
    ],
)
def test_a_slip_is_refused_with_place_rule_value_and_way_out(change: Change, words: str) -> None:
    said = refusal(change)
    assert said.startswith("env/tiny.yaml: ") and words in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            put(*GROUP, "profiles", value=["cpu_tny"]),
            "providers[0].profiles names none of the profiles known: 'cpu_tny'; did you mean cpu_tiny?",
        ),
        (
            put(*GROUP, "demand", "schedule", value=[[45, -0.5, 2.0]]),
            "providers[0].demand.schedule[0][1] must be a number in [0, 1000] rate, got -0.5",
        ),
        (
            put("delay_s", value={"lab": {"lab": 0}, "moon": {"lab": 1, "moon": 0}}),
            "delay_s.lab must say the delay to moon, got lab: no region may be unreachable",
        ),
        (
            put(*GROUP, "demand", "schedule", value=[[61, 0, 1]]),
            "providers[0].demand.schedule must end within horizon_s = 60, got 61",
        ),
    ],
)
def test_the_worst_slips_are_one_line_with_file_key_rule_and_value(change: Change, words: str) -> None:
    assert refusal(change) == f"env/tiny.yaml: {words}"


def test_all_slips_are_told_at_once() -> None:
    def change(values: dict[str, Any]) -> None:
        put(*GROUP, "profiles", value=["x"])(values)
        put("arrivals_until_s", value=61)(values)

    assert len(refusal(change).splitlines()) == 2


def test_a_batch_checks_its_scenario_too() -> None:
    broken = replace(load.scenario("tiny"), arrivals_until_s=61.0)
    with pytest.raises(SettingsError, match="env tiny: arrivals_until_s must be <= horizon_s = 60, got 61"):
        Batch(broken, load.terms(), PROFILES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"networks": 0}, "Batch: networks must be >= 1, got 0"),
        ({"seed": -1}, "Batch: seed must be >= 0, got -1"),
        ({"threads": 0}, "Batch: threads must be >= 1, got 0"),
        ({"dispatch": "markt"}, "dispatch must be one of market, paper_central, central, got 'markt'"),
    ],
)
def test_a_batch_refuses_impossible_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("tiny", **arguments)


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.zeros((2, 3, 3)), r"actions must be integers of shape \(2, 3, 3\), got float64"),
        (np.full((2, 3, 3), np.nan), "must be integers"),
        (np.zeros((2, 3), int), r"got int64 of shape \(2, 3\)"),
        (
            np.array([[[0, 0, 0]] * 3, [[0, 0, 0], [0, 7, 0], [0, 0, 0]]]),
            "network 1, provider 1: forward must be one of the levels .* got 7",
        ),
        (np.full((2, 3, 3), -1), "network 0, provider 0: accept must be one of the levels .* got -1"),
    ],
)
def test_a_batch_refuses_hostile_actions_and_does_not_move(actions: np.ndarray, words: str) -> None:
    batch = make("tiny", networks=2)
    before = batch.observations.tobytes()
    with pytest.raises(ValueError, match=words):
        batch.step(actions)
    assert batch.observations.tobytes() == before


def test_outcomes_are_asked_for_in_advance_and_brains_by_name() -> None:
    with pytest.raises(ValueError, match="make the Batch with record=True"):
        make("tiny").outcomes()
    with pytest.raises(ValueError, match="brain must be paper or policy, got 'papers'"):
        make("tiny").pin("papers")


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_shipped_scenario_is_sound_and_says_its_own_name(name: str) -> None:
    scenario = load.scenario(name)
    check(scenario, PROFILES, name)
    assert scenario.name == name and scenario.population >= 3 and scenario.steps >= 60


def test_the_papers_settings_have_the_papers_number_of_nodes() -> None:
    assert [load.scenario(f"paper-{k}").population for k in (1, 2, 3, 4)] == [4, 4, 4, 8]


def rates_of(demand: Demand, episodes: int) -> np.ndarray:
    """Own requests of one provider that has `demand`, (episodes, tenths of the horizon)."""
    tiny = load.scenario("tiny")
    lone = replace(tiny.providers[0], count=1, demand=demand)
    whole = replace(tiny, providers=[lone], horizon_s=1000.0, arrivals_until_s=1000.0, requests_max=4096)
    batch = Batch(whole, load.terms(), PROFILES, networks=episodes, seed=1, record=True, autoreset=False)
    for _ in range(1000):
        batch.step(np.zeros((episodes, 1, 3), np.int64))
    rows = batch.outcomes()
    edges = np.arange(0, 1001, 100)
    return np.stack([np.histogram(rows["arrival_s"][rows["network"] == n], edges)[0] for n in range(episodes)])


@pytest.mark.parametrize("gap_cv", [0.5, 1.0, 2.0])
def test_arrivals_have_the_rate_of_the_schedule_and_the_spread_of_their_gaps(gap_cv: float) -> None:
    demand = Demand("requests_per_s", [(400.0, 0.2, 0.2), (700.0, 1.0, 1.0), (900.0, 0.0, 0.0)], 0.0, gap_cv, None, None)
    counts = rates_of(demand, 8)
    assert counts[:, :4].mean() == pytest.approx(20, abs=4 * gap_cv) and counts[:, 4:7].mean() == pytest.approx(100, abs=8 * gap_cv)
    assert not counts[:, 7:].any()
    assert np.sqrt(counts[:, 4:7].var() / counts[:, 4:7].mean()) == pytest.approx(gap_cv, rel=0.5)


def test_a_trace_is_dealt_out_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{t},{10 + t},{20 + t}\n" for t in range(30)), encoding="utf-8"
    )
    tiny = load.scenario("tiny")
    demand = Demand("requests_per_s", [], 0.0, 1.0, None, str(file))
    batch = Batch(
        replace(tiny, providers=[replace(tiny.providers[0], count=3, demand=demand)]), load.terms(), PROFILES, record=True
    )
    for _ in range(40):
        batch.step(np.zeros((1, 3, 3), np.int64))
    rows = batch.outcomes()
    assert rows["arrival_s"].tolist() == list(range(30)) and rows["origin"].tolist() == [0, 1, 2] * 10
    assert rows["prompt_tokens"].tolist() == list(range(10, 40)) and rows["output_tokens"].tolist() == list(range(20, 50))


@pytest.mark.parametrize("count", [3, 32, 128, 512])
def test_populations_differ_from_the_default_in_number_alone(count: int) -> None:
    default, other = load.scenario("wwwserve"), load.scenario(f"population-{count}")
    (group,) = default.providers
    assert other.population == count and other.requests_max >= 128 * count
    sizes = {"name": other.name, "requests_max": other.requests_max, "duels_max": other.duels_max}
    assert other == replace(default, providers=[replace(group, count=count)], **sizes)


@pytest.mark.slow
def test_hundreds_of_providers_fit_in_memory_and_lose_no_request() -> None:
    batch = make("population-512", record=True, autoreset=False)
    batch.pin("paper")
    for _ in range(batch.steps_per_episode):
        batch.step(np.zeros((1, 512, 3), np.int64))
    rows, totals = batch.outcomes(), batch.totals()
    assert len(rows) == totals["arrived"][0] > 20_000 and (rows["delegated"] == 1).mean() > 0.05
    assert sum(table.nbytes for table in batch.save().values()) < 200e6


@pytest.mark.parametrize("name", ["quantisation", "backends", "hardware", "random-responders", "ablation"])
def test_whoever_asks_in_an_experiment_of_the_paper_only_asks(name: str) -> None:
    scenario = load.scenario(name)
    asker, *workers = scenario.providers
    assert asker.count == 1 and asker.standing.engine == 0 and asker.standing.wealth == 100
    assert all(row[1] == row[2] == 0 for group in workers for row in group.demand.schedule)


def test_the_record_of_demand_by_capacity_is_bounded_closely() -> None:
    scenario = load.scenario("wwwserve")
    batch = make("wwwserve", networks=20, seed=3, record=True, autoreset=False)
    for _ in range(batch.steps_per_episode):
        batch.step(np.zeros((20, 8, 3), np.int64))
    most = int(batch.totals()["arrived"].max())
    assert most < most_requests(scenario, PROFILES) < 40 * most


def test_seats_are_pinned_one_by_one_and_let_go_again() -> None:
    batch = make("tiny", networks=3)

    def pinned() -> list[list[int]]:
        return to_array(batch.world.driver, STATE["driver"])["pinned"].reshape(3, -1).tolist()

    nobody = [[0] * batch.providers] * 3
    batch.pin("paper", [0], [1])
    assert pinned() == [nobody[0], [1, *nobody[0][1:]], nobody[0]]
    batch.pin("paper")
    batch.pin("policy", None, [0, 2])
    assert pinned() == [nobody[0], [1] * batch.providers, nobody[0]]
