"""Processes that prove orders say what the ledger's own process would say, and no order is lost with one of them."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_bridge.ledger import ledger as ledgers
from live_bridge.ledger import provers
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Hold, OrderError, Pay, check, decode, encode
from live_bridge.ledger.provers import Prover, answer, check_each, receive, send

from .stage import REALM, accepted, hold, ledger_on, opened, paid
from .test_orders import ANN, BOB, one_of_each

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@contextmanager
def one_prover() -> Iterator[Prover]:
    """A prover whose process is up."""
    prover = Prover(REALM, 1)
    try:
        up(prover)
        yield prover
    finally:
        prover.close()


def up(prover: Prover) -> int:
    """Ask until the process answers; there is no other way of noticing."""
    until_s = time.monotonic() + 30.0
    while prover.pid is None:
        assert time.monotonic() < until_s, "the process is not up"
        assert prover.prove([ANN.write(Pay(BOB.identity.id, 5))])
        time.sleep(0.02)
    return prover.pid


def gone(pid: int) -> bool:
    """Whether a process has ended and was waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_prover_says_of_every_kind_of_order_what_this_process_says() -> None:
    good = one_of_each()
    bad = [replace(order, signature="0" * 128) for order in good] + [replace(order, public="x") for order in good]
    with one_prover() as prover:
        assert prover.prove(good + bad) == check_each(good + bad, REALM)
        assert prover.prove([]) == []
        assert prover.losses == 0


def test_a_prover_says_of_damaged_orders_what_this_process_says() -> None:
    chance = random.Random(3)
    orders = []
    for order in one_of_each() * 100:
        body = bytearray(encode(order))
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        try:
            orders.append(decode(orjson.loads(bytes(body))))
        except (orjson.JSONDecodeError, OrderError):
            continue
    with one_prover() as prover:
        assert len(orders) > 300
        assert prover.prove(orders) == check_each(orders, REALM)


@given(JSON, st.sampled_from(["public", "sequence", "signature", "payee", "amount_micro"]))
@settings(max_examples=300, deadline=None)
def test_an_order_means_the_same_on_both_sides_of_the_wire_whatever_stands_in_it(value: object, key: str) -> None:
    order = ANN.write(Pay(BOB.identity.id, 5))
    changed = replace(order, **{key: value}) if hasattr(order, key) else replace(order, terms=replace(order.terms, **{key: value}))
    try:
        check(changed, REALM)
        here = "good"
    except OrderError as error:
        here = error.code
    try:
        said = answer(orjson.loads(b"[" + encode(changed) + b"]"), REALM)[0]
    except orjson.JSONEncodeError:
        assert here == "malformed"  # what cannot be written is proved here, and never good
    else:
        assert here == ("good" if len(said) == 2 else said[0])


def test_what_cannot_be_written_is_proved_here() -> None:
    orders = [ANN.write(Pay(BOB.identity.id, 5)), replace(ANN.write(Pay(BOB.identity.id, 5)), sequence=2**80)]
    with one_prover() as prover:
        first, second = prover.prove(orders)
        assert first == check(orders[0], REALM)
        assert not second.accepted and second.code == "malformed"
        assert prover.losses == 0 and prover.pid is not None


def test_a_prover_that_was_killed_costs_no_order_and_is_started_again(monkeypatch) -> None:
    monkeypatch.setattr(provers, "AGAIN_S", 0.0)
    orders = one_of_each() * 4
    with one_prover() as prover:
        first = prover.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert prover.prove(orders) == check_each(orders, REALM)
        assert prover.losses == 1 and prover.pid is None and gone(first)
        assert up(prover) != first
        assert prover.prove(orders) == check_each(orders, REALM)


def test_a_prover_that_hangs_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(provers, "PATIENCE_S", 0.2)
    orders = one_of_each()
    with one_prover() as prover:
        hung = prover.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        assert prover.prove(orders) == check_each(orders, REALM)
        assert prover.losses == 1 and gone(hung)


def test_a_prover_that_cannot_start_is_not_asked_for_again_at_once(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    orders = one_of_each()
    prover = Prover(REALM, 1)
    until_s = time.monotonic() + 10.0
    while prover.losses == 0:
        assert time.monotonic() < until_s
        prover.prove(orders)
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **how: started.append(words))
    assert prover.prove(orders) == check_each(orders, REALM)
    assert started == [] and prover.pid is None
    prover.close()


def test_a_prover_ends_when_its_ledger_is_gone_and_not_before() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [sys.executable, "-m", "live_bridge.ledger.provers", *REALM]
        process = subprocess.Popen(words, stdin=theirs, env={**os.environ, "RULES": "python"})
        theirs.close()
        ours.settimeout(30.0)
        assert ours.recv(1) == b"+"
        for word in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal and systemd send them to the whole group
            process.send_signal(word)
        send(ours, b"[" + encode(ANN.write(Pay(BOB.identity.id, 5))) + b"]")
        assert orjson.loads(receive(ours))[0][1] == ANN.identity.id
        ours.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("size", [0, 1, 65_535, 1_000_003])
def test_messages_of_any_length_arrive_whole(size: int) -> None:
    ours, theirs = socket.socketpair()
    content = random.Random(size).randbytes(size)
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        theirs.settimeout(10.0)
        sent = thread.submit(send, ours, content)
        assert receive(theirs) == content
        sent.result()


def test_a_message_that_breaks_off_is_none() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"\0\0\0\x05abc")
        with pytest.raises(ConnectionResetError):
            receive(theirs)


def test_a_ledger_in_a_small_market_needs_no_other_process() -> None:
    async def play() -> None:
        async with ledger_on(MemoryStore()) as ledger:
            ann, *others = await opened(ledger, 40)
            for _ in range(5):
                await accepted(ledger, ann, *(Pay(other.identity.id, 1) for other in others))
            assert ledger.provers() == []
            assert all(prover._wire is None for prover in ledger._provers)

    asyncio.run(play())


def test_one_processor_has_no_use_for_provers(monkeypatch) -> None:
    for processors, wanted in ((1, 0), (2, 2), (64, provers.MOST)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, many=processors: set(range(many)))
        assert provers.seats() == wanted


def test_a_ledger_whose_provers_are_killed_again_and_again_loses_no_order(monkeypatch) -> None:
    monkeypatch.setattr(ledgers, "seats", lambda: 2)
    monkeypatch.setattr(provers, "AGAIN_S", 0.0)
    monkeypatch.setattr(ledgers, "Prover", lambda realm: Prover(realm, 1))
    counts: list[str] = []

    async def killed(ledger) -> list[int]:
        until_s = time.monotonic() + 30.0
        while not ledger.provers():
            assert time.monotonic() < until_s
            await ledger.submit_all([ledger_order] * 32)
            await asyncio.sleep(0.02)
        pids = ledger.provers()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    async def play() -> None:
        nonlocal ledger_order
        async with ledger_on(MemoryStore(), counts=counts) as ledger:
            ann, bob = await opened(ledger, 2)
            ledger_order = ann.write(Pay(bob.identity.id, 1))
            for turn in range(3):
                pids = await killed(ledger)
                names = [f"h{turn}.{k}" for k in range(40)]
                await accepted(ledger, ann, *(hold(bob, name, 1000) for name in names))
                await accepted(ledger, ann, *(paid(bob, name, 1000) for name in names))
                assert all(gone(pid) for pid in pids)
            stolen = [replace(each, signature="0" * 128) for each in (ann.write(hold(bob, "x", 1)),) * 32]
            assert {receipt.code for receipt in await ledger.submit_all(stolen)} == {"signature"}
            await killed(ledger)
        assert ledger.provers() == []
        assert all(prover.pid is None for prover in ledger._provers)

    ledger_order = ANN.write(Hold("none", BOB.identity.id, 1, 1, "work", "r"))
    asyncio.run(play())
    assert counts.count("prover_lost") >= 3 and counts.count("signature") == 32
