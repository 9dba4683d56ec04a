"""A node's orders: written once, sent until they are answered, and no credit lost when the ledger comes late or never."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from live_bridge import purse as purses
from live_bridge.ledger.journal import Receipt
from live_bridge.ledger.ledger import LocalLedger
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Author, Order, Vote
from live_bridge.ledger.store import StoreError
from live_bridge.peers.judge import sign_vote
from live_bridge.purse import LEDGER_AWAY, Held, Paid, Purse, duel_won, proof_of, proven
from market.duel import FOR_A
from market.terms import MICRO
from tests.live_bridge.ledger.stage import NETWORK, TERMS, delivery, ledger_on, person

ME, ANN, BEN, CAS = (person(k) for k in range(4))
TTL_S = 900.0


class Far:
    """A ledger behind a line that a test can cut: orders wait, get lost on their way, or are done and not answered."""

    def __init__(self, ledger: LocalLedger) -> None:
        self.near = ledger
        self.founding = ledger.founding
        self.sent: list[Order] = []
        self.whole = asyncio.Event()
        self.whole.set()
        self.lost: list[str] = []
        """What becomes of the next orders: `before` they are done, or `after`."""

    async def submit(self, order: Order) -> Receipt:
        self.sent.append(order)
        await self.whole.wait()
        fate = self.lost.pop(0) if self.lost else ""
        if fate == "before":
            raise StoreError("lost on its way")
        receipt = await self.near.submit(order)
        if fate == "after":
            raise StoreError("the answer was lost")
        return receipt

    async def accounts(self) -> Any:
        return await self.near.accounts()

    def signed(self, receipt: Receipt) -> Receipt:
        return self.near.signed(receipt)


class Scene:
    """A purse with an account, at a ledger of three others."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.told: list[tuple[str, Receipt | None]] = []
        self.beside: set[Any] = set()
        self.purse = Purse(far, ME, TTL_S, lambda kind, receipt: self.told.append((kind, receipt)), self.spawn)  # type: ignore[arg-type]

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.beside.add(task)
        task.add_done_callback(self.beside.discard)

    async def rest(self) -> None:
        async with asyncio.timeout(10.0):
            while self.beside:
                await asyncio.wait(set(self.beside))

    async def mine(self) -> Any:
        return (await self.far.accounts())[ME.id]

    async def held(self, payee: Any = ANN, amount: int = MICRO, request: str = "r1") -> Held:
        held = await self.purse.hold(payee.id, amount, "work", request)
        assert isinstance(held, Held), held
        return held

    async def paid(self, payee: Any, request: str = "r1") -> Paid:
        """A delivered and settled piece of work."""
        held = await self.held(payee, request=request)
        word = delivery(Author(payee, self.far.founding.realm, 0), held.hold_id)
        assert (await self.purse.settle(held, held.amount_micro, 10, word)).accepted
        return Paid(held, word.digest)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with ledger_on(MemoryStore(), terms=TERMS) as ledger:
        made = Scene(Far(ledger))
        assert (await made.purse.open()).accepted
        for other in (ANN, BEN, CAS):
            await Purse(ledger, other, TTL_S, lambda *_: None, made.spawn).open()
        yield made
        await made.rest()


def play(act: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with scene() as made:
            await act(made)

    asyncio.run(run())


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purses, "HOLD_PATIENCE_S", 0.02)
    monkeypatch.setattr(purses, "AGAIN_S", 0.005)


def test_an_account_is_opened_once_in_its_life() -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        again = await made.purse.open()
        assert again.accepted and await made.mine() == before

    play(act)


def test_credit_is_set_aside_and_paid() -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        await made.paid(ANN)
        after = await made.mine()
        assert (before.credit_micro - after.credit_micro, after.escrow_micro) == (MICRO, 0)
        assert [kind for kind, _ in made.told] == ["open", "hold", "settle"]
        assert all(receipt is not None and receipt.accepted for _, receipt in made.told)

    play(act)


def test_credit_comes_back_when_nothing_was_delivered() -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        held = await made.held()
        assert (await made.mine()).escrow_micro == MICRO
        await made.purse.settle(held, 0, 0, None)
        assert await made.mine() == before

    play(act)


def test_what_the_ledger_refuses_is_said_as_it_says_it() -> None:
    async def act(made: Scene) -> None:
        too_much = await made.purse.hold(ANN.id, 10**12, "work", "r1")
        assert isinstance(too_much, Receipt) and (too_much.accepted, too_much.code) == (False, "insufficient_credit")
        stranger = await made.purse.hold("ab" * 20, MICRO, "work", "r1")
        assert isinstance(stranger, Receipt) and stranger.code == "unknown_payee"

    play(act)


def test_every_hold_and_every_order_has_a_name_of_its_own() -> None:
    async def act(made: Scene) -> None:
        holds = [await made.held() for _ in range(20)]
        assert len({held.hold_id for held in holds}) == 20
        assert all(held.hold_id.startswith(ME.id[:12]) for held in holds)
        assert len({order.sequence for order in made.far.sent}) == len(made.far.sent)

    play(act)


def test_a_later_life_uses_no_sequence_of_an_earlier_one() -> None:
    async def act(made: Scene) -> None:
        await made.held()
        later = Purse(made.far, ME, TTL_S, lambda *_: None, made.spawn)  # type: ignore[arg-type]
        assert isinstance(await later.hold(ANN.id, MICRO, "work", "r2"), Held)
        sequences = [order.sequence for order in made.far.sent if order.kind == "hold"]
        assert sequences == sorted(set(sequences))

    play(act)


def test_stake_is_committed_and_released() -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        assert (await made.purse.stake(5 * MICRO)).accepted
        assert (await made.mine()).stake_micro == before.stake_micro + 5 * MICRO
        assert (await made.purse.unstake(5 * MICRO)).accepted
        after = await made.mine()
        assert (after.stake_micro, after.unbonding_micro) == (before.stake_micro, 5 * MICRO)

    play(act)


@pytest.mark.usefixtures("hasty")
def test_a_ledger_that_is_away_keeps_a_request_waiting_once_and_no_other_at_all() -> None:
    async def act(made: Scene) -> None:
        made.far.whole.clear()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        first = await made.purse.hold(ANN.id, MICRO, "work", "r1")
        assert isinstance(first, Receipt) and (first.code, first.accepted) == (LEDGER_AWAY, False)
        assert loop.time() - began_s >= 0.02
        sent = len(made.far.sent)
        for _ in range(5):
            other = await made.purse.hold(ANN.id, MICRO, "work", "r2")
            assert isinstance(other, Receipt) and other.code == LEDGER_AWAY
        assert len(made.far.sent) == sent
        assert made.told.count(("hold", None)) == 1
        made.far.whole.set()
        await made.rest()
        assert isinstance(await made.purse.hold(ANN.id, MICRO, "work", "r3"), Held)

    play(act)


@pytest.mark.usefixtures("hasty")
def test_credit_that_is_set_aside_too_late_comes_back() -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        made.far.whole.clear()
        await made.purse.hold(ANN.id, MICRO, "work", "r1")
        made.far.whole.set()
        await made.rest()
        assert [order.kind for order in made.far.sent] == ["open", "hold", "settle"]
        assert await made.mine() == before

    play(act)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lost", ["before", "after"])
def test_credit_of_which_it_is_not_known_whether_it_was_set_aside_comes_back(lost: str) -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        made.far.lost = [lost]
        found = await made.purse.hold(ANN.id, MICRO, "work", "r1")
        assert isinstance(found, Receipt) and found.code == LEDGER_AWAY
        await made.rest()
        assert await made.mine() == before

    play(act)


def test_credit_for_work_that_was_called_off_meanwhile_comes_back() -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        made.far.whole.clear()
        asking = asyncio.create_task(made.purse.hold(ANN.id, MICRO, "work", "r1"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        made.far.whole.set()
        await made.rest()
        assert await made.mine() == before

    play(act)


@pytest.mark.usefixtures("hasty")
def test_what_is_owed_is_paid_once_however_often_the_order_is_lost() -> None:
    async def act(made: Scene) -> None:
        before = await made.mine()
        held = await made.held()
        made.far.lost = ["before", "after", "before", "after", "after"]
        word = delivery(Author(ANN, made.far.founding.realm, 0), held.hold_id)
        receipt = await made.purse.settle(held, MICRO, 10, word)
        assert receipt.accepted
        settles = [order for order in made.far.sent if order.kind == "settle"]
        assert len(settles) == 6 and len(set(settles)) == 1, "it is the same order each time"
        assert made.told.count(("settle", None)) == 5
        after = await made.mine()
        assert (before.credit_micro - after.credit_micro, after.escrow_micro) == (MICRO, 0)

    play(act)


def test_a_ledger_that_fails_to_stake_is_told_to_the_caller() -> None:
    async def act(made: Scene) -> None:
        made.far.lost = ["before"]
        with pytest.raises(StoreError):
            await made.purse.stake(MICRO)

    play(act)


# -- proofs


def test_a_proof_of_payment_is_read_by_whom_it_is_for() -> None:
    async def act(made: Scene) -> None:
        held = await made.held()
        found = proven(proof_of(held), made.far.founding, ME.id, ANN.id)
        assert not isinstance(found, str)
        assert (found.hold_id, found.amount_micro, found.payee) == (held.hold_id, MICRO, ANN.id)

    play(act)


def test_a_proof_of_payment_is_for_one_payer_and_one_payee() -> None:
    async def act(made: Scene) -> None:
        proof, founding = proof_of(await made.held()), made.far.founding
        assert proven(proof, founding, ME.id, BEN.id) == "the order is not a hold of the sender's for this node"
        assert proven(proof, founding, BEN.id, ANN.id) == "the order is not a hold of the sender's for this node"

    play(act)


def test_a_proof_of_payment_that_was_changed_proves_nothing() -> None:
    async def act(made: Scene) -> None:
        held, founding = await made.held(), made.far.founding
        other = await made.held()

        def changed(**parts: Any) -> Any:
            return proof_of(held) | parts

        receipt = list(held.receipt)
        refused = receipt.copy()
        refused[Receipt._fields.index("accepted")] = False
        richer = receipt.copy()
        richer[Receipt._fields.index("credit_micro")] += 1
        order = proof_of(held)["order"]
        assert isinstance(order, dict)
        more = order | {"terms": order["terms"] | {"amount_micro": 2 * MICRO}}
        for proof in (
            None,
            [],
            {},
            {"order": order},
            {"receipt": receipt},
            changed(receipt=[]),
            changed(receipt=receipt[:-1]),
            changed(receipt=refused),
            changed(receipt=richer),
            changed(receipt=list(other.receipt)),
            changed(receipt=[*receipt[:-1], "00" * 64]),
            changed(receipt=[*receipt[:-1], None]),
            changed(order=None),
            changed(order={}),
            changed(order=more),
            changed(order=order | {"signature": "00" * 64}),
        ):
            assert isinstance(proven(proof, founding, ME.id, ANN.id), str), proof

    play(act)


def test_a_settlement_is_no_proof_of_payment() -> None:
    async def act(made: Scene) -> None:
        held = await made.held()
        receipt = await made.purse.settle(held, 0, 0, None)
        [settle] = [order for order in made.far.sent if order.kind == "settle"]
        proof = proof_of(held._replace(order=settle, receipt=made.far.signed(receipt)))
        assert proven(proof, made.far.founding, ME.id, ANN.id) == "the order is not a hold of the sender's for this node"

    play(act)


async def fought(made: Scene) -> tuple[dict[str, object], str]:
    """A duel that Ann has won against Ben: its proof and its name."""
    sides = await made.paid(ANN), await made.paid(BEN)
    name = made.purse.name_duel(*sides)
    vote = Vote.of(sign_vote(CAS, NETWORK, name, ANN.id, BEN.id, FOR_A))
    order, receipt = await made.purse.duel(name, *sides, [vote])
    return proof_of(Held("", "", 0, "", order, receipt)), name


def test_a_duel_proves_to_both_how_it_ended_and_to_nobody_else() -> None:
    async def act(made: Scene) -> None:
        proof, name = await fought(made)
        founding = made.far.founding
        assert duel_won(proof, founding, ANN.id) == (name, True)
        assert duel_won(proof, founding, BEN.id) == (name, False)
        assert duel_won(proof, founding, CAS.id) is None
        assert duel_won(proof, founding, ME.id) is None

    play(act)


def test_a_duel_that_was_not_decided_or_is_made_up_proves_nothing() -> None:
    async def act(made: Scene) -> None:
        proof, _ = await fought(made)
        founding, receipt = made.far.founding, proof["receipt"]
        assert isinstance(receipt, list)
        sides = await made.paid(ANN, "r2"), await made.paid(BEN, "r2")
        order, tie = await made.purse.duel(made.purse.name_duel(*sides), *sides, [Vote.none(CAS.id)])
        held = await made.held()
        for other in (
            None,
            [],
            {"order": proof["order"]},
            proof | {"receipt": receipt[:-1]},
            proof | {"receipt": [*receipt[:-1], "00" * 64]},
            proof | {"order": {}},
            proof_of(held),
            proof_of(Held("", "", 0, "", order, tie)),
            proof | {"receipt": list(tie)},
        ):
            assert duel_won(other, founding, ANN.id) is None

    play(act)


def test_a_duel_is_named_by_all_that_is_judged() -> None:
    async def act(made: Scene) -> None:
        a, b = await made.paid(ANN), await made.paid(BEN)
        c = await made.paid(CAS)
        names = {made.purse.name_duel(*sides) for sides in ((a, b), (b, a), (a, c), (a, b._replace(digest="11" * 32)))}
        assert len(names) == 4

    play(act)
