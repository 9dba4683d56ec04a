"""The origin's side of duels, with stand-ins for all that is far away: whatever fails or hangs, nothing is left of a duel."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import orjson
import pytest

from live_bridge import desk as desks
from live_bridge.brain import Brain
from live_bridge.clock import Clock
from live_bridge.core import Core
from live_bridge.correspondence import UnansweredError
from live_bridge.desk import Desk, answer_text, delivery_of, question_text, text_of, vote_of
from live_bridge.facts import Facts
from live_bridge.identity import Identity
from live_bridge.job import Job
from live_bridge.ledger.journal import refusal
from live_bridge.ledger.orders import Vote
from live_bridge.metrics import NodeMetrics
from live_bridge.peers.judge import SignedVote, sign_vote
from live_bridge.purse import Held, Paid
from live_bridge.relay import BROKE, CUT, DONE
from live_bridge.view.recent import Recent
from market.duel import ABSTAIN, FOR_A
from tests.live_bridge.minds import TERMS, mind

PEERS = ("ann", "ben", "cas", "dee", "eve")
BODY = b'{"prompt": "why?"}'
DEADLINE_S = 60.0
PATIENCE_TURNS = 50
"""Turns of the loop, not seconds, for which a user waits: as many on a busy machine as on a quiet one."""


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.clock = Clock(1.0, lambda: self.now_s)


class NoJournal:
    def write(self, line: list[Any]) -> None:
        """Forget it."""


class Purse:
    """A ledger that keeps count of what is set aside."""

    def __init__(self, luck: random.Random) -> None:
        self.luck = luck
        self.open: set[str] = set()
        self.duels = 0

    async def hold(self, payee: str, amount_micro: int, purpose: str, request: str) -> Any:
        await asyncio.sleep(0)
        if self.luck.random() < 0.1:
            return refusal("", "me", "insufficient_credit")
        name = f"h{self.luck.random()}"
        self.open.add(name)
        return Held(name, payee, amount_micro, request, None, refusal("", "me", ""))  # type: ignore[arg-type]

    async def settle(self, held: Held, amount_micro: int, tokens: int, delivery: Any) -> Any:
        self.open.remove(held.hold_id)
        return refusal("", "me", "")._replace(accepted=True)

    def name_duel(self, a: Paid, b: Paid) -> str:
        return "ab" * 20

    async def duel(self, duel_id: str, a: Paid, b: Paid, votes: list[Vote]) -> Any:
        await asyncio.sleep(0)
        self.duels += 1
        return None, refusal("", "me", "tie")._replace(accepted=True)


class Trade:
    """Peers that answer, fail or hang, as luck has it."""

    def __init__(self, luck: random.Random, purse: Purse) -> None:
        self.luck, self.purse = luck, purse
        self.delivered: dict[str, Any] = {}
        self.forgotten: list[str] = []

    async def remote(self, job: Job, sink: Any, rest: tuple[Any, ...]) -> str:
        held = await self.purse.hold(rest[0], 1, "work", job.id)
        outcome = CUT
        try:
            outcome = await self._answered(job)
        finally:
            if isinstance(held, Held):
                await self.purse.settle(held, 0, 0, None)
            if outcome == DONE and job.keep is not None and isinstance(held, Held):
                self.delivered[job.id] = (held, type("Delivery", (), {"digest": "cd" * 32})())
        return outcome

    async def _answered(self, job: Job) -> str:
        chance = self.luck.random()
        if chance < 0.2:
            await asyncio.Event().wait()
        for _ in range(self.luck.randrange(4)):
            await asyncio.sleep(0)
        if chance < 0.4:
            return BROKE
        if job.keep is not None:
            job.keep += b'{"choices": [{"text": "because"}]}'
        return DONE

    def forget(self, job_id: str) -> None:
        self.forgotten.append(job_id)


class Letters:
    """Judges that vote without a signature, are silent, or hang."""

    def __init__(self, luck: random.Random) -> None:
        self.luck = luck
        self.asked: list[tuple[str, Any]] = []

    async def ask(self, peer: str, path: str, letter: Any, patience_s: float) -> tuple[int, object]:
        self.asked.append((path, letter))
        chance = self.luck.random()
        if chance < 0.3:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if chance < 0.6:
            raise UnansweredError(f"peer {peer}: is silent")
        return 200, {"verdict": "A", "public": "00" * 32, "signature": "00" * 64}


class Scene:
    """A mind that duels all it delegates, its desk, and users that ask."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.time = Time()
        self.version = 10
        brain = mind(peers=PEERS, policy=(3, 4, 2), terms=replace(TERMS, duel_rate=1.0), duel_deadline_s=DEADLINE_S)
        self.brain: Brain = brain
        self.core = Core(brain, self.time.clock, NoJournal(), "test")
        self.purse = Purse(self.luck)
        self.trade = Trade(self.luck, self.purse)
        self.letters = Letters(self.luck)
        self.tasks: set[Any] = set()
        self.failures: list[BaseException] = []
        self.metrics = NodeMetrics()
        self.desk = Desk(
            self.core, self.trade, self.letters, lambda: self.purse, self.metrics, Recent(self.time.clock.now), self.spawn
        )  # type: ignore[arg-type]
        self.core.carry_out |= {"ask": self.ask, "send": self.send, "fail": self.fail, "stake": self.no, "unstake": self.no}

    def no(self, *_: Any) -> None:
        """Not of interest here."""

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: Any) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failures.append(task.exception())

    def ask(self, job_id: str, peer: str, price_micro: int) -> None:
        answer = self.luck.choice(["yes", "yes", "yes", "no", "silent"])
        asyncio.get_running_loop().call_soon(self._answer, job_id, peer, answer)

    def _answer(self, job_id: str, peer: str, answer: str) -> None:
        if job_id in self.core.jobs:
            self.core.emit("answer", job_id, peer, answer)
            self.version += 1
            self.core.emit("heard", [[peer, self.version, 0.0, 1.0, 0.1, 1.0, 0, 0] for peer in PEERS])

    def send(self, job_id: str, peer: str) -> None:
        self.core.jobs[job_id].decree("peer", peer)

    def fail(self, job_id: str, reason: str) -> None:
        self.core.jobs[job_id].decree("fail", reason)

    async def request(self, job_id: str) -> None:
        """An own user's request, as the gateway sees it through; the user leaves when nothing comes."""
        core = self.core
        job = Job(job_id, "/v1/completions", [], BODY, Facts(10, 10, stream=False, model=""), core.clock.now())
        core.jobs[job_id] = job
        core.emit("arrive", job_id, 10, 10)
        answer = asyncio.ensure_future(self._answer_to(job))
        for _ in range(PATIENCE_TURNS):
            if answer.done():
                break
            await asyncio.sleep(0)
        answer.cancel()
        await asyncio.wait([answer])
        del core.jobs[job_id]
        core.emit("end", job_id, int(not answer.cancelled() and answer.result() == DONE), 0.0)

    async def _answer_to(self, job: Job) -> str:
        kind, *rest = await job.fate()
        return await self.trade.remote(job, None, tuple(rest)) if kind == "peer" else "done"

    async def duels(self, count: int, at_once: int = 50) -> None:
        for first in range(0, count, at_once):
            await asyncio.gather(*(self.request(f"me.1.{k}") for k in range(first, min(first + at_once, count))))
            self.time.now_s += 1.0
            self.core.emit("tick", 1.0, {})

    async def rest(self) -> None:
        """Let the time of all duels pass."""
        self.time.now_s += DEADLINE_S + 1.0
        self.core.emit("tick", 1.0, {})
        for _ in range(20):
            await asyncio.sleep(0)


def nothing_is_left(scene: Scene) -> None:
    assert scene.failures == []
    assert scene.brain.contests.open == {}
    assert scene.brain.works == {}
    assert scene.core.jobs == {}
    assert scene.desk._cases == {}
    assert scene.trade.delivered == {}
    assert scene.purse.open == set()
    assert scene.tasks == set()


def many(count: int) -> Scene:
    async def run() -> Scene:
        scene = Scene(count)
        await scene.duels(count)
        await scene.rest()
        nothing_is_left(scene)
        return scene

    return asyncio.run(run())


def test_nothing_is_left_of_a_thousand_duels_in_which_all_kinds_of_things_fail() -> None:
    scene = many(1000)
    fates = Counter(path for path, _ in scene.letters.asked)
    assert fates[desks.JUDGE] > 200
    counted = scene.metrics.render(levels()).decode()
    assert 'wwwserve_duels_total{result="called_off"}' in counted


@pytest.mark.slow
def test_nothing_is_left_of_ten_thousand_duels() -> None:
    many(10_000)


def levels() -> Any:
    from live_bridge.metrics import Levels

    return Levels(0, 0, 0, 0, {})


def test_judges_read_the_question_and_both_answers_and_are_told_who_answered() -> None:
    scene = many(200)
    letters = [letter for path, letter in scene.letters.asked if path == desks.JUDGE]
    assert letters
    for letter in letters:
        assert (letter["question"], letter["a"], letter["b"]) == ("why?", "because", "because")
        assert len(set(letter["executors"])) == 2 and set(letter["executors"]) <= set(PEERS)
        assert not letter["id"].endswith(":copy") and letter["id"].startswith("me.1.")
        assert (letter["prompt_tokens"], letter["remaining_s"]) == (4, DEADLINE_S)


def test_the_second_request_of_a_life_is_a_request_as_any_other() -> None:
    """Ids are counted, and no count may look like the mark of a copy."""
    from live_bridge.trade import request_of

    assert [request_of(f"me.1.{k}") for k in range(30)] == [f"me.1.{k}" for k in range(30)]
    assert request_of("me.1.2:copy") == "me.1.2"


JUDGE = Identity(bytes(range(32)))
SIDES = (
    Paid(Held("h1", "aa" * 20, 1, "r", None, refusal("", "", "")), "11" * 32),  # type: ignore[arg-type]
    Paid(Held("h2", "bb" * 20, 1, "r", None, refusal("", "", "")), "22" * 32),  # type: ignore[arg-type]
)


def cast(
    vote: int = FOR_A, *, duel: str = "ab" * 20, network: str = "test", executors: tuple[str, str] | None = None
) -> dict[str, Any]:
    a, b = executors or ("aa" * 20, "bb" * 20)
    signed: SignedVote = sign_vote(JUDGE, network, duel, a, b, vote)
    one = Vote.of(signed)
    return {"verdict": one.verdict, "public": one.public, "signature": one.signature}


def test_a_signed_vote_is_read() -> None:
    for vote, verdict in ((FOR_A, "A"), (ABSTAIN, "abstain")):
        read = vote_of(cast(vote), JUDGE.id, "test", "ab" * 20, SIDES)
        assert read is not None and (read.judge, read.verdict) == (JUDGE.id, verdict)


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        {"verdict": "A"},
        cast() | {"verdict": "B"},
        cast() | {"verdict": "absent"},
        cast() | {"verdict": 0},
        cast() | {"public": "zz" * 32},
        cast() | {"public": "00" * 31},
        cast() | {"signature": ""},
        cast() | {"signature": None},
        cast(duel="cd" * 20),
        cast(network="other"),
        cast(executors=("bb" * 20, "aa" * 20)),
    ],
)
def test_a_vote_that_its_judge_has_not_cast_in_this_duel_is_none(said: Any) -> None:
    assert vote_of(said, JUDGE.id, "test", "ab" * 20, SIDES) is None


def test_a_vote_that_another_has_cast_is_none() -> None:
    assert vote_of(cast(), "cc" * 20, "test", "ab" * 20, SIDES) is None


def test_a_judges_word_on_its_work_is_read_or_is_none() -> None:
    whole = {"public": "00" * 32, "tokens": 1, "digest": "11" * 32, "signature": "22" * 64}
    read = delivery_of({"delivery": whole})
    assert read is not None and (read.tokens, read.digest) == (1, "11" * 32)
    for said in (None, {}, {"delivery": None}, {"delivery": {**whole, "tokens": "1"}}, {"delivery": {"public": ""}}):
        assert delivery_of(said) is None


@pytest.mark.parametrize(
    ("body", "question"),
    [
        ({"prompt": "why?"}, "why?"),
        ({"prompt": [1, 2, 3]}, "1 2 3"),
        ({"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "why?"}]}, "be short\nwhy?"),
        ({"messages": [{"content": [{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {}}]}]}, "what "),
        ({"messages": ["odd", {"role": "user"}]}, ""),
        ({"messages": None, "prompt": None}, ""),
        ({}, ""),
    ],
)
def test_the_question_of_a_request_is_what_a_judge_can_read(body: dict[str, Any], question: str) -> None:
    assert question_text(orjson.dumps(body)) == question


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"choices": [{"text": "yes"}]}', "yes"),
        (b'{"choices": [{"message": {"content": "yes"}}]}', "yes"),
        (b'data: {"choices":[{"text":"y"}]}\n\ndata: {"choices":[{"text":"es"}]}\n\ndata: [DONE]\n\n', "yes"),
        (b': hello\n\ndata: {"choices":[{"delta":{"content":"yes"}}]}\r\n\r\ndata: [DONE]\r\n\r\n', "yes"),
        (b'data: {"choices":[{"delta":{"content":null}}]}\n\n', ""),
        (b'data: {"choices":[{"text":"cut', ""),
        (b'{"choices": []}', ""),
        (b'{"choices": ["odd"]}', ""),
        (b'{"choices": 5}', ""),
        (b'{"choices": {"0": {"text": "no"}}}', ""),
        (b'{"choices": [{"message": "odd"}]}', ""),
        (b'{"choices": [{"text": null, "message": {"content": "yes"}}]}', "yes"),
        (b'{"choices": [{"message": {"content": [{"type": "text", "text": "yes"}]}}]}', "yes"),
        (b"[]", ""),
        (b"", ""),
    ],
)
def test_the_text_of_an_answer_is_found_in_every_form(raw: bytes, text: str) -> None:
    assert answer_text(raw) == text


def test_text_of_anything_else_is_nothing() -> None:
    assert [text_of(odd) for odd in (None, 7, {"text": "x"}, True)] == [""] * 4
