"""Every slip in a setting is found and named; every good value arrives as it was written."""

import copy
import math
import pickle
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from settings import Range, SettingsError, Slip, did_you_mean, read, show

PLACE = "conf/test.yaml"


class OtherRange(NamedTuple):
    """Any object with these three fields is a limit."""

    low: float
    high: float
    unit: str


@dataclass(frozen=True)
class Arrivals:
    rate: Annotated[float, Range(0, math.inf, "requests/s")]
    kind: Literal["poisson", "gamma", 3]


@dataclass(frozen=True)
class World:
    duel_rate: Annotated[float, Range(0, 1, "share")]
    providers: Annotated[int, OtherRange(1, 1000, "providers")]
    noisy: bool
    title: str
    arrivals: Arrivals
    more: list[Arrivals]
    waits: list[Annotated[float, Range(0, 10, "s")]]
    span: tuple[float, int]
    layers: tuple[Annotated[int, Range(1, 8, "")], ...]
    regions: dict[str, Annotated[float, Range(0, 5, "s")]]
    limit: Annotated[float, Range(1, 9, "s")] | None
    threads: int | Literal["auto"]
    peak: Arrivals | None


GOOD: dict[str, Any] = {
    "duel_rate": 0.1,
    "providers": 8,
    "noisy": True,
    "title": "a market",
    "arrivals": {"rate": 1.5, "kind": "poisson"},
    "more": [{"rate": 0, "kind": 3}],
    "waits": [1, 2.5],
    "span": [1.5, 2],
    "layers": [1, 2, 3],
    "regions": {"europe": 0.5},
    "limit": None,
    "threads": "auto",
    "peak": None,
}


def slips(values: Any, kind: Any = World) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(kind, values, PLACE)
    return str(caught.value).splitlines()


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(GOOD) | changes


def test_good_values_arrive_typed_and_frozen() -> None:
    world = read(World, GOOD, PLACE)
    assert world.arrivals == Arrivals(1.5, "poisson") and world.more == [Arrivals(0.0, 3)]
    assert world.layers == (1, 2, 3) and world.span == (1.5, 2) and world.waits == [1.0, 2.5]
    assert isinstance(world.waits[0], float) and isinstance(world.more[0].rate, float)
    with pytest.raises(AttributeError):
        world.noisy = False  # type: ignore[misc]


def test_a_hydra_config_is_read_with_its_interpolations() -> None:
    assert read(World, OmegaConf.create(GOOD | {"title": "${arrivals.kind}"}), PLACE).title == "poisson"


def test_values_are_not_changed() -> None:
    before = copy.deepcopy(GOOD)
    read(World, GOOD, PLACE)
    assert before == GOOD


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"duel_rate": 2}, "duel_rate must be a share in [0, 1], got 2"),
        ({"duel_rate": -0.001}, "duel_rate must be a share in [0, 1], got -0.001"),
        ({"duel_rate": math.nan}, "duel_rate must be a share in [0, 1], got .nan"),
        ({"duel_rate": "0.1"}, "duel_rate must be a share in [0, 1], got '0.1'"),
        ({"duel_rate": True}, "duel_rate must be a share in [0, 1], got true"),
        ({"duel_rate": None}, "duel_rate must be a share in [0, 1], got null"),
        ({"duel_rate": [0.1]}, "duel_rate must be a share in [0, 1], got [0.1]"),
        ({"duel_rate": "???"}, "duel_rate is missing; it must be a share in [0, 1]"),
        ({"providers": 0}, "providers must be an integer in [1, 1000] providers, got 0"),
        ({"providers": 2.5}, "providers must be an integer in [1, 1000] providers, got 2.5"),
        ({"providers": 8.0}, "providers must be an integer in [1, 1000] providers, got 8.0 (write 8)"),
        ({"providers": "five"}, "providers must be an integer in [1, 1000] providers, got 'five'"),
        ({"providers": False}, "providers must be an integer in [1, 1000] providers, got false"),
        ({"noisy": 1}, "noisy must be true or false, got 1"),
        ({"noisy": "yes"}, "noisy must be true or false, got 'yes'"),
        ({"title": 3}, "title must be text, got 3"),
        ({"arrivals": {"rate": -1, "kind": "gamma"}}, "arrivals.rate must be a number >= 0 requests/s, got -1"),
        (
            {"arrivals": {"rate": 1, "kind": "gama"}},
            "arrivals.kind must be one of poisson, gamma, 3, got 'gama'; did you mean gamma?",
        ),
        ({"arrivals": {"rate": 1, "kind": True}}, "arrivals.kind must be one of poisson, gamma, 3, got true"),
        ({"arrivals": {"rate": 1, "kind": 3.0}}, "arrivals.kind must be one of poisson, gamma, 3, got 3.0"),
        ({"arrivals": [1]}, "arrivals must be a mapping, got [1]"),
        ({"arrivals": None}, "arrivals must be a mapping, got null"),
        ({"more": {"rate": 1}}, "more must be a list, each item a mapping, got {'rate': 1}"),
        ({"more": [{"rate": 1, "kind": 3}, 7]}, "more[1] must be a mapping, got 7"),
        ({"more": [{"rate": math.nan, "kind": 3}]}, "more[0].rate must be a number >= 0 requests/s, got .nan"),
        ({"waits": [1, 11]}, "waits[1] must be a number in [0, 10] s, got 11"),
        ({"waits": 3}, "waits must be a list, each item a number in [0, 10] s, got 3"),
        ({"span": [1]}, "span must be a list of 2: a number, an integer, got 1 items"),
        ({"span": [math.inf, 1]}, "span[0] must be a number, got .inf"),
        ({"span": [10**400, 1]}, "span[0] must be a number, got 1" + "0" * 56 + "..."),
        ({"layers": [1, 9]}, "layers[1] must be an integer in [1, 8], got 9"),
        ({"regions": {"asia": 6}}, "regions.asia must be a number in [0, 5] s, got 6"),
        ({"regions": {3: 1.0}}, "regions must have text as keys, got 3"),
        ({"regions": [1]}, "regions must be a mapping, got [1]"),
        ({"limit": 0.5}, "limit must be a number in [1, 9] s or null, got 0.5"),
        ({"threads": "aut"}, "threads must be an integer or one of auto, got 'aut'"),
        ({"threads": None}, "threads must be an integer or one of auto, got null"),
        ({"peak": {"rate": -1, "kind": 3}}, "peak.rate must be a number >= 0 requests/s, got -1"),
    ],
)
def test_a_slip_is_named_with_place_key_rule_and_value(changes: dict[str, Any], said: str) -> None:
    assert slips(changed(**changes)) == [f"{PLACE}: {said}"]


def test_infinity_is_taken_only_where_the_range_reaches_it() -> None:
    assert read(Arrivals, {"rate": math.inf, "kind": 3}, PLACE).rate == math.inf
    assert slips({"rate": -math.inf, "kind": 3}, Arrivals) == [f"{PLACE}: rate must be a number >= 0 requests/s, got -.inf"]


def test_an_unknown_key_is_told_the_nearest_that_is_not_given_yet() -> None:
    values = changed(duel_rat=0.1)
    del values["duel_rate"]
    assert slips(values) == [
        f"{PLACE}: duel_rat is not a setting; did you mean duel_rate?",
        f"{PLACE}: duel_rate is missing; it must be a share in [0, 1]",
    ]


def test_an_unknown_key_that_resembles_nothing_is_told_all() -> None:
    assert slips({"rate": 1, "kind": 3, "zzz": 0}, Arrivals) == [f"{PLACE}: zzz is not a setting; choose from kind, rate"]


def test_every_missing_key_is_named() -> None:
    said = slips({})
    assert len(said) == len(fields(World)) and all("is missing; it must be" in line for line in said)


def test_all_slips_are_told_at_once_in_the_order_of_the_type() -> None:
    said = slips(changed(duel_rate=2, noisy=3, layers=[0, 9], oops=1))
    assert [line.split()[1] for line in said] == ["oops", "duel_rate", "noisy", "layers[0]", "layers[1]"]


@pytest.mark.parametrize("values", [None, 3, "text", [1], {}.items()])
def test_what_is_no_mapping_is_refused(values: Any) -> None:
    (said,) = slips(values)
    assert said.startswith(f"{PLACE}: must be a mapping, got ")


def test_an_interpolation_that_leads_nowhere_is_a_slip() -> None:
    (said,) = slips(OmegaConf.create(changed(title="${nowhere}")))
    assert said.startswith(f"{PLACE}: title cannot be resolved:") and "nowhere" in said


def test_a_default_in_a_type_is_a_fault_of_the_type() -> None:
    @dataclass(frozen=True)
    class WithDefault:
        rate: float = 1.0

    with pytest.raises(TypeError, match="no defaults"):
        read(WithDefault, {"rate": 1.0}, PLACE)


def test_a_kind_that_cannot_be_read_is_a_fault_of_the_type() -> None:
    @dataclass(frozen=True)
    class WithSet:
        names: set[str]

    with pytest.raises(TypeError, match="cannot read"):
        read(WithSet, {"names": ["a"]}, PLACE)


def test_a_rule_across_fields_is_a_slip_of_the_whole() -> None:
    @dataclass(frozen=True)
    class Span:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"must have low <= high, got {self.low} > {self.high}")

    @dataclass(frozen=True)
    class Outer:
        span: Span

    assert slips({"span": {"low": 2, "high": 1}}, Outer) == [f"{PLACE}: span must have low <= high, got 2 > 1"]


def test_the_error_survives_the_way_between_processes() -> None:
    error = SettingsError(Slip("a", "b", "c"), Slip("d", "", "e"))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "a: b c\nd: e" and again.slips == error.slips


def test_a_choice_is_guessed_or_listed() -> None:
    assert did_you_mean("pppo", ["ppo", "paper"]) == "did you mean ppo?"
    assert did_you_mean("zzz", ["ppo", "paper"]) == "choose from paper, ppo"
    assert did_you_mean("zzz", []) == "there is nothing to choose from"


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["auto", "gamma", "???"])
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)


@given(key=st.sampled_from(sorted(GOOD)), value=TREES)
def test_any_value_is_either_read_or_refused_by_its_key(key: str, value: Any) -> None:
    try:
        world = read(World, changed(**{key: value}), PLACE)
    except SettingsError as error:
        assert all(slip.place == PLACE and slip.key.startswith(key) for slip in error.slips)
        assert "\n" not in error.slips[0].rule
    else:
        assert legal(world)


def legal(world: World) -> bool:
    """State the ranges once more, by hand."""
    numbers = [world.duel_rate, *world.waits, *world.layers, *world.regions.values()]
    inside = 0 <= world.duel_rate <= 1 and 1 <= world.providers <= 1000 and all(1 <= layer <= 8 for layer in world.layers)
    waits = all(0 <= wait <= 10 for wait in world.waits) and all(0 <= delay <= 5 for delay in world.regions.values())
    exact = (
        type(world.noisy) is bool and type(world.title) is str and type(world.providers) is int and type(world.duel_rate) is float
    )
    return inside and waits and exact and not any(math.isnan(number) for number in numbers)


@given(extra=st.text(min_size=1, max_size=12).filter(lambda key: key not in GOOD))
def test_any_unknown_key_is_refused(extra: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(World, changed(**{extra: 1}), PLACE)
    assert [slip.key for slip in caught.value.slips] == [extra]


@given(missing=st.sets(st.sampled_from(sorted(GOOD)), min_size=1))
def test_any_missing_key_is_refused(missing: set[str]) -> None:
    values = {key: value for key, value in GOOD.items() if key not in missing}
    with pytest.raises(SettingsError) as caught:
        read(World, values, PLACE)
    assert {slip.key for slip in caught.value.slips} == missing


@given(
    st.builds(
        Arrivals,
        rate=st.floats(0, allow_nan=False),
        kind=st.sampled_from(["poisson", "gamma", 3]),
    )
)
def test_what_is_written_is_read_back(arrivals: Arrivals) -> None:
    assert is_dataclass(arrivals)
    assert read(Arrivals, {"rate": arrivals.rate, "kind": arrivals.kind}, PLACE) == arrivals


@given(LEAVES)
def test_a_value_is_shown_in_one_short_line(value: Any) -> None:
    assert len(show(value)) <= 60 and "\n" not in show(value)
