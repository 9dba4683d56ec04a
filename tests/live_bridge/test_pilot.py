"""The policy behind its fence: asked in a thread of its own, checked, given up when it stalls, and swapped as a whole."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.card import PolicyError
from agents.policy import Baseline
from live_bridge import pilot as pilots
from live_bridge import trial
from live_bridge.pilot import Pilot, Verdict, ask, fenced
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE
from tests.live_bridge import policies

CONTROL_S = 5.0
SEEN = np.zeros((1, OBSERVATION_SIZE), np.float32), np.ones((1, MASK_SIZE), np.int8)


class Scripted:
    """A policy that does as it is told."""

    name = "scripted"

    def __init__(self, act: Callable[[], Any]) -> None:
        self.calls = self.prepared = 0
        self._act = act

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Any:
        self.calls += 1
        return self._act()

    def prepare(self) -> None:
        self.prepared += 1


def levels(*three: int) -> np.ndarray:
    return np.array([three], np.int64)


def piloted(policy: Any) -> Pilot:
    pilot = Pilot("single", CONTROL_S)
    pilot.baseline = Baseline("scripted", "policy", "market", policy)
    return pilot


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def decided(pilot: Pilot, turns: int = 1) -> list[Verdict]:
    async def run() -> list[Verdict]:
        return [await pilot.decide(lambda: SEEN) for _ in range(turns)]

    return asyncio.run(run())


def test_a_policy_prepares_its_next_answer_once_it_has_given_one() -> None:
    policy = Scripted(lambda: levels(1, 2, 3))
    assert decided(piloted(policy), turns=4)[-1].action == (1, 2, 3)
    assert policy.calls == 4 and policy.prepared >= 3  # the last time is after everybody has gone


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy must not look like a policy that stalls."""
    monkeypatch.setattr(pilots, "PATIENCE_S", 5.0)


@pytest.mark.usefixtures("patient")
def test_a_decision_is_the_policys_levels() -> None:
    [verdict] = decided(piloted(Scripted(lambda: levels(3, 4, 2))))
    assert verdict == Verdict((3, 4, 2), None)
    assert [type(level) for level in verdict.action or ()] == [int] * 3


def test_the_papers_rules_are_asked_nothing() -> None:
    pilot = Pilot("paper", CONTROL_S)
    seen: list[int] = []

    async def run() -> Verdict:
        return await pilot.decide(lambda: seen.append(1) or SEEN)  # type: ignore[func-returns-value]

    assert (asyncio.run(run()), seen) == (Verdict(None, None), [])


@pytest.mark.parametrize(
    ("act", "failure"),
    [
        (lambda: levels(3, 4), "wrong_shape"),
        (lambda: np.array([3, 4, 2]), "wrong_shape"),
        (lambda: np.array([[3, 4, 2], [3, 4, 2]]), "wrong_shape"),
        (lambda: np.array([[3.0, 4.0, 2.0]]), "wrong_shape"),
        (lambda: np.array([[np.nan, 4.0, 2.0]]), "wrong_shape"),
        (lambda: levels(3, 5, 2), "wrong_shape"),
        (lambda: levels(-1, 0, 0), "wrong_shape"),
        (lambda: None, "wrong_shape"),
        (lambda: "321", "wrong_shape"),
        (raising(PolicyError("x: logits must be finite, got nan")), "not_finite"),
        (raising(PolicyError("x: mask must have shape")), "wrong_shape"),
        (raising(ValueError("cannot reshape array of size 10 into shape (3,5)")), "wrong_shape"),
        (raising(PolicyError("x: is tired")), "refused"),
        (raising(ZeroDivisionError("division")), "refused"),
        (raising(IndexError("out")), "refused"),
        (raising(RuntimeError("odd")), "refused"),
        (raising(MemoryError()), "refused"),
        (raising(pilots.ORT_ERRORS[0]("Non-zero status code")), "refused"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_with_its_reason(act: Callable[[], Any], failure: str) -> None:
    assert ask(Scripted(act), *SEEN) == Verdict(None, failure)


def test_a_level_that_the_mask_forbids_is_not_taken() -> None:
    mask = np.ones((1, MASK_SIZE), np.int8)
    mask[0, 5 + 4] = 0
    assert ask(Scripted(lambda: levels(3, 4, 2)), SEEN[0], mask) == Verdict(None, "masked")
    assert ask(Scripted(lambda: levels(3, 3, 2)), SEEN[0], mask).action == (3, 3, 2)


class Gate:
    """A policy that answers when it is let."""

    def __init__(self) -> None:
        self.open, self.inside = threading.Event(), threading.Event()

    def act(self) -> np.ndarray:
        self.inside.set()
        self.open.wait(20.0)
        return levels(1, 2, 3)


def test_a_policy_that_stalls_is_given_up_at_once_and_asked_again_when_it_has_answered() -> None:
    gate = Gate()
    policy = Scripted(gate.act)
    pilot = piloted(policy)
    late: list[Verdict] = []
    pilot.late = late.append

    async def run() -> None:
        began_s = time.monotonic()
        assert await pilot.decide(lambda: SEEN) == Verdict(None, "stalled")
        assert pilots.PATIENCE_S <= time.monotonic() - began_s < 20 * pilots.PATIENCE_S
        for _ in range(3):
            began_s = time.monotonic()
            assert await pilot.decide(lambda: SEEN) == Verdict(None, "stalled")
            assert time.monotonic() - began_s < pilots.PATIENCE_S, "nobody waits for it twice"
        assert (policy.calls, late) == (1, [])
        gate.open.set()
        async with asyncio.timeout(20.0):
            while not late:
                await asyncio.sleep(0.001)
        assert late == [Verdict((1, 2, 3), None)]
        pilots_verdict = Verdict(None, "stalled")
        async with asyncio.timeout(20.0):
            while pilots_verdict.failure == "stalled":
                pilots_verdict = await pilot.decide(lambda: SEEN)
        assert pilots_verdict.action == (1, 2, 3)

    asyncio.run(run())


def test_the_loop_goes_on_while_a_policy_is_asked() -> None:
    pilot = piloted(Scripted(Gate().act))

    async def run() -> int:
        turns = 0
        deciding = asyncio.create_task(pilot.decide(lambda: SEEN))
        while not deciding.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(run()) > 10


@pytest.mark.usefixtures("patient")
def test_a_new_policy_is_asked_though_the_old_one_stalls_and_the_old_ones_answer_is_not_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    pilot = piloted(Scripted(gate.act))
    late: list[Verdict] = []
    pilot.late = late.append

    async def run() -> Verdict:
        with monkeypatch.context() as short:
            short.setattr(pilots, "PATIENCE_S", 0.05)
            assert (await pilot.decide(lambda: SEEN)).failure == "stalled"
        pilot.take(Baseline("new", "policy", "market", Scripted(lambda: levels(4, 4, 4))))
        verdict = await pilot.decide(lambda: SEEN)
        gate.open.set()
        await asyncio.sleep(0.05)
        return verdict

    assert asyncio.run(run()) == Verdict((4, 4, 4), None)
    assert (late, pilot.name, pilot.loads) == ([], "new", 1)


def test_a_pilot_that_is_closed_hears_no_late_answer() -> None:
    gate = Gate()
    pilot = piloted(Scripted(gate.act))
    late: list[Verdict] = []
    pilot.late = late.append

    async def run() -> None:
        await pilot.decide(lambda: SEEN)
        pilot.close()
        gate.open.set()
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert late == []


def test_a_policy_that_never_answers_keeps_no_process_from_ending() -> None:
    threads = {thread for thread in threading.enumerate() if thread.name == "policy"}
    pilot = piloted(Scripted(Gate().act))
    assert decided(pilot)[0].failure == "stalled"
    mine = {thread for thread in threading.enumerate() if thread.name == "policy"} - threads
    assert mine and all(thread.daemon for thread in mine)


@pytest.mark.usefixtures("patient")
def test_an_answer_after_the_loop_is_closed_ends_the_thread_quietly() -> None:
    gate = Gate()
    pilot = piloted(Scripted(gate.act))

    async def run() -> None:
        asking = asyncio.create_task(pilot.decide(lambda: SEEN))
        await asyncio.to_thread(gate.inside.wait, 20.0)
        asking.cancel()

    asyncio.run(run())
    [thread] = [each for each in threading.enumerate() if each.name == "policy" and each.is_alive()][-1:]
    gate.open.set()
    thread.join(20.0)
    assert not thread.is_alive()


def test_a_policy_is_named_after_its_folder_or_itself(tmp_path: Path) -> None:
    folder = policies.folder_of(tmp_path / "mine")
    assert [Pilot(name, CONTROL_S).name for name in (str(folder), "paper", "single", "fixed:3-0-2")] == [
        "mine",
        "paper",
        "single",
        "fixed:3-0-2",
    ]


def test_a_bad_policy_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    pilot = Pilot(str(policies.folder_of(tmp_path / "mine")), CONTROL_S)
    before = pilot.baseline
    for name in ("nope", str(policies.folder_of(tmp_path / "sick", policies.sick())), "central"):
        with pytest.raises(PolicyError):
            pilot.reload(name)
    assert (pilot.baseline, pilot.loads) == (before, 0)
    pilot.reload("single")
    assert (pilot.name, pilot.loads) == ("single", 1)


def test_to_read_a_policy_has_no_effect_until_it_is_taken(tmp_path: Path) -> None:
    pilot = Pilot("paper", CONTROL_S)
    read = pilot.read(str(policies.folder_of(tmp_path / "mine")))
    assert pilot.name == "paper"
    pilot.take(read)
    assert pilot.name == "mine"


@pytest.mark.parametrize("name", ["central", "paper_central"])
def test_a_scheduler_of_a_whole_market_steers_no_node(name: str) -> None:
    with pytest.raises(PolicyError, match=f"{name} is a scheduler that sees all nodes at once; a node can follow paper, single"):
        fenced(name, CONTROL_S, 0)


def test_a_policy_of_one_seed_draws_the_same_again(tmp_path: Path) -> None:
    folder = policies.folder_of(
        tmp_path / "mine", policies.linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.zeros(MASK_SIZE))
    )

    def drawn(seed: int) -> list[Verdict]:
        policy = fenced(str(folder), CONTROL_S, seed).policy
        return [ask(policy, *SEEN) for _ in range(20)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert len(set(drawn(7))) > 1


# -- memory


def test_a_policy_remembers_through_a_life_and_a_life_begins_with_nothing(tmp_path: Path) -> None:
    folder = str(policies.remembering(tmp_path / "mine"))
    pilot = Pilot(folder, CONTROL_S)
    assert [verdict.action for verdict in decided(pilot, turns=6)] == [(k, k, k) for k in (1, 2, 2, 2, 2, 3)]
    pilot.reload(folder)
    assert [verdict.action for verdict in decided(pilot, turns=2)] == [(1, 1, 1), (2, 2, 2)]
    assert decided(Pilot(folder, 4 * CONTROL_S), turns=3)[-1].action == (3, 3, 3), "its own pace is 20 s"


def test_a_failure_in_between_costs_no_memory(tmp_path: Path) -> None:
    policy = fenced(str(policies.remembering(tmp_path / "mine")), 4 * CONTROL_S, 0).policy
    nothing = SEEN[0] * np.nan, SEEN[1]
    said = [ask(policy, *seen) for seen in (SEEN, nothing, SEEN)]
    assert said == [Verdict((1, 1, 1), None), Verdict(None, "not_finite"), Verdict((2, 2, 2), None)]


def test_a_policy_that_remembers_passes_its_trial(tmp_path: Path) -> None:
    asyncio.run(trial.Trials().try_out(str(policies.remembering(tmp_path / "mine"))))


# -- trials


def test_a_policy_that_is_well_passes_its_trial_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = policies.folder_of(tmp_path / "mine")
    runs: list[str] = []

    async def counted(name: str) -> None:
        runs.append(name)

    monkeypatch.setattr(trial, "_run", counted)
    trials = trial.Trials()

    async def run() -> None:
        for _ in range(3):
            await trials.try_out(str(folder))
        policies.folder_of(folder, policies.well((1, 1, 1)))
        await trials.try_out(str(folder))

    asyncio.run(run())
    assert runs == [str(folder)] * 2


@pytest.mark.parametrize("name", ["paper", "single", "fixed:3-0-2", "uniform"])
def test_a_policy_without_a_folder_needs_no_trial(name: str) -> None:
    assert trial.digest_of(name) == ""
    asyncio.run(trial.Trials().try_out(name))


def test_a_trial_says_what_is_wrong_and_is_repeated(tmp_path: Path) -> None:
    folder = policies.folder_of(tmp_path / "sick", policies.sick())
    trials = trial.Trials()
    for _ in range(2):
        with pytest.raises(PolicyError, match=r"sick/policy\.onnx: logits must be finite, got nan; export it again"):
            asyncio.run(trials.try_out(str(folder)))


def test_a_trial_that_dies_is_no_more_than_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = policies.folder_of(tmp_path / "mine")
    monkeypatch.setattr(trial.sys, "executable", "/bin/false")
    with pytest.raises(PolicyError, match="mine has ended its trial with status 1; export it again"):
        asyncio.run(trial.Trials().try_out(str(folder)))


def test_what_is_too_large_is_not_even_counted(tmp_path: Path) -> None:
    folder = policies.folder_of(tmp_path / "mine")
    import os

    os.truncate(folder / "policy.onnx", 1 << 40)
    began_s = time.monotonic()
    with pytest.raises(PolicyError, match="has 1099511627776 bytes, a policy's has at most 67108864; export it again"):
        asyncio.run(trial.Trials().try_out(str(folder)))
    assert time.monotonic() - began_s < 2.0


def test_the_trial_of_a_policy_in_a_process_of_its_own_ends_with_0_or_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess
    import sys

    good, moody = policies.folder_of(tmp_path / "good"), policies.folder_of(tmp_path / "sick", policies.sick())
    for folder, status in ((good, 0), (moody, 2)):
        words = [sys.executable, "-m", "live_bridge.trial", str(folder)]
        done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout == "") == (status, status == 0)
        assert done.stdout.count("\n") == (status == 2)
