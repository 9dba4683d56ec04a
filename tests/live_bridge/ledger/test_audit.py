"""An audit proves a ledger from its signed journal, and names the first entry that does not hold."""

import asyncio
import hashlib
import sqlite3
from pathlib import Path

import orjson
import pytest

from live_bridge.cli import main as command
from live_bridge.ledger.audit import Auditor, Finding, audit_store
from live_bridge.ledger.journal import Balances, Entry, found, founding_entry, read_founding, sealed
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Pay, Stake, Unstake, encode, order_id
from live_bridge.ledger.sqlite import SqliteStore
from market.terms import MICRO

from .stage import (
    LEDGER,
    NETWORK,
    REALM,
    TERMS,
    Wall,
    accepted,
    authors,
    delivered_twice,
    duel_of,
    hold,
    ledger_on,
    opened,
    paid,
    person,
)

PAID = 6
"""Place of ann's payment in the journal that `lively` writes."""


async def lively(store) -> list[Entry]:
    """Write a journal with something of everything."""
    wall = Wall()
    async with ledger_on(store, wall) as ledger:
        ann, bob, cat, dan, eve = await opened(ledger, 5)
        await accepted(ledger, ann, Pay(bob.identity.id, 3 * MICRO), hold(bob, "h1"), paid(bob, "h1"), hold(cat, "h2", ttl_s=60))
        wall.s += 61
        await accepted(ledger, bob, Stake(MICRO), Unstake(2 * MICRO))
        assert not (await ledger.submit(cat.write(Pay(ann.identity.id, 10**15)))).accepted
        await delivered_twice(ledger, ann, bob, cat)
        await accepted(ledger, ann, duel_of(ann, bob, cat, [(dan, "A"), (eve, "absent")]), hold(dan, "open"))
        wall.s += 100
        await accepted(ledger, bob, Pay(ann.identity.id, 1))
        await accepted(ledger, cat, Unstake(1))
        return await store.journal(0, 1000)


def test_a_good_journal_is_proved_to_the_last_micro_credit(engine) -> None:
    async def run() -> None:
        journal = await lively(await engine())
        async with ledger_on(await engine(), Wall()) as ledger:
            verdict = await audit_store(ledger.store)
        assert verdict[1:] == (len(journal), 5, 5 * 102 * MICRO, 1, journal[-1].digest.hex())
        assert {orjson.loads(entry.body)["kind"] for entry in journal[1:]} >= {
            "open",
            "pay",
            "hold",
            "settle",
            "stake",
            "unstake",
            "duel",
            "expire",
        }

    asyncio.run(run())


def journal_of() -> list[Entry]:
    """A good journal."""
    return asyncio.run(lively(MemoryStore()))


def first_bad(journal: list[Entry]) -> tuple[int | None, str]:
    """What an audit finds in a journal that was tampered with."""
    with pytest.raises(Finding) as finding:
        auditor = Auditor(journal[0])
        for entry in journal[1:]:
            auditor.take(entry)
        auditor.verdict()
    return finding.value.place, str(finding.value)


def resealed(journal: list[Entry], place: int, **changes) -> list[Entry]:
    """Change an entry, and seal it and all behind it anew, as the ledger's operator can."""
    out = list(journal)
    out[place] = out[place]._replace(**changes)
    for at in range(place, len(out)):
        out[at] = sealed(out[at - 1].digest, out[at])
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {"at_us": 10**9}, {"account": "0" * 40}, {"sequence": 99}, {"order_id": bytes(32)}, {"body": b"{}"}, {"accepted": False},
        {"reason": "tie"}, {"after": Balances(0, 0, 0, 0)}, {"digest": bytes(32)},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
@pytest.mark.parametrize("place", [1, PAID, 9])
def test_any_field_of_any_entry_that_was_changed_is_found_there(changes: dict, place: int) -> None:
    journal = journal_of()
    journal[place] = journal[place]._replace(**changes)
    found_at, text = first_bad(journal)
    assert found_at == place
    assert text.startswith(f"entry {place}: its digest does not follow") and text.endswith("it was changed")


def test_an_operator_who_reseals_the_chain_still_cannot_change_what_came_of_an_order() -> None:
    journal = journal_of()
    richer = journal[PAID].after._replace(credit_micro=10**9)
    for changes, word in (
        ({"after": richer}, "after would be"),
        ({"accepted": False, "reason": "insufficient_credit"}, "accepted would be"),
    ):
        place, text = first_bad(resealed(journal, PAID, **changes))
        assert place == PAID and "does not follow from the rules" in text and word in text


def test_an_operator_cannot_write_an_order_for_another() -> None:
    journal = journal_of()
    thief = authors(2, REALM)[1]
    forged = thief.write(Pay(thief.identity.id[::-1], MICRO))
    order = orjson.loads(encode(forged)) | {"public": person(0).public.hex()}
    place, text = first_bad(resealed(journal, PAID, body=orjson.dumps(order)))
    assert place == PAID and "its order does not count" in text and "sign it anew" in text


def test_an_operator_cannot_let_an_order_happen_twice_or_leave_one_out_or_swap_two() -> None:
    journal = journal_of()
    twice = [*journal[: PAID + 1], journal[PAID], *journal[PAID + 1 :]]
    renumbered = [entry._replace(place=at) for at, entry in enumerate(twice)]
    place, text = first_bad(resealed(renumbered, PAID + 1))
    assert place == PAID + 1 and "does not follow from the rules" in text
    place, text = first_bad([*journal[:PAID], *journal[PAID + 1 :]])
    assert place == PAID and f"entry {PAID}: is missing" in text
    left_out = [entry._replace(place=at) for at, entry in enumerate([*journal[: PAID + 1], *journal[PAID + 2 :]])]
    place, text = first_bad(resealed(left_out, PAID + 1))
    assert place == PAID + 1 and "no_such_hold" in text, "the settlement of a hold that was left out"


def test_time_cannot_run_back_and_a_hold_cannot_be_kept_beyond_its_time() -> None:
    journal = journal_of()
    place, text = first_bad(resealed(journal, len(journal) - 1, at_us=1))
    assert place == len(journal) - 1 and "time runs back" in text
    (expiry,) = [entry.place for entry in journal if entry.account == "" and entry.place > 0]
    kept = [entry._replace(place=at) for at, entry in enumerate([*journal[:expiry], *journal[expiry + 1 :]])]
    place, text = first_bad(resealed(kept, expiry))
    assert place == expiry and "a hold that was due is not given back" in text
    early = resealed(journal, expiry, at_us=journal[expiry - 1].at_us)
    assert first_bad(early)[0] == expiry


def test_a_founding_is_the_ledgers_own() -> None:
    journal = journal_of()
    founding = read_founding(journal[0].body)
    richer = founding._replace(initial_credit_micro=10**12)
    place, text = first_bad([founding_entry(richer), *journal[1:]])
    assert place == 0 and "not signed by the ledger" in text
    place, text = first_bad([journal[0]._replace(body=b"[]"), *journal[1:]])
    assert place == 0 and "is not the founding of a ledger" in text
    other = founding_entry(found(LEDGER, NETWORK, TERMS, 5.0, 1.0))
    assert first_bad([other, *journal[1:]])[0] == 1
    assert first_bad([journal[0]._replace(at_us=5), *journal[1:]])[0] == 0


def written(path: Path) -> int:
    """Write a lively ledger file; returns the number of entries."""
    return len(asyncio.run(lively(SqliteStore(path))))


def tampered(path: Path, statement: str) -> None:
    """Change a ledger's file behind its back."""
    db = sqlite3.connect(path)
    with db:
        assert db.execute(statement).rowcount > 0
    db.close()


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("UPDATE journal SET credit_micro = credit_micro + 1 WHERE place = 6", "entry 6: its digest does not follow"),
        (
            "UPDATE journal SET body = CAST(replace(body, '3000000', '3000001') AS BLOB) WHERE place = 6",
            "entry 6: its digest does not follow",
        ),
        ("DELETE FROM journal WHERE place = 8", "entry 8: is missing; the next one is 9"),
        ("DELETE FROM journal WHERE place > 9", "account "),
        ("DELETE FROM journal", "holds no entry"),
        ("UPDATE accounts SET credit_micro = credit_micro + 1", "account "),
        ("UPDATE accounts SET tranches = '[]' WHERE tranches <> '[]'", "account "),
        ("UPDATE holds SET payee = origin, origin = payee WHERE state = 0", "hold open"),
        ("UPDATE holds SET state = 0 WHERE hold_id = 'h1'", "hold h1"),
    ],
)
def test_a_file_that_was_tampered_with_is_found_out(tmp_path: Path, capsys, statement: str, text: str) -> None:
    path = tmp_path / "ledger.sqlite"
    written(path)
    tampered(path, statement)
    assert command(["ledger", "audit", str(path)]) in {1, 2}
    said = capsys.readouterr().err
    assert text in said and str(path) in said


def test_the_command_says_what_it_has_proved(tmp_path: Path, capsys) -> None:
    path = tmp_path / "ledger.sqlite"
    count = written(path)
    assert command(["ledger", "audit", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{count} entries, 5 accounts, 510.000000 credits minted and all there, 1 open holds" in said
    assert command(["ledger", "accounts", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["account", "credit", "stake", "unbonding", "escrow"]
    assert sum(float(word) for line in lines[1:] for word in line.split()[1:]) == pytest.approx(510.0)


def test_the_command_reads_a_server_too(postgres: str, capsys) -> None:
    from live_bridge.ledger.postgres import PostgresStore

    async def run() -> None:
        await lively(await PostgresStore.connect(postgres))

    asyncio.run(run())
    assert command(["ledger", "audit", postgres]) == 0
    assert "5 accounts, 510.000000 credits" in capsys.readouterr().out


@pytest.mark.parametrize(("where", "text"), [("nowhere.sqlite", "is not there"), ("http://127.0.0.1:1", "127.0.0.1:1")])
def test_the_command_names_what_cannot_be_read(where: str, text: str, capsys) -> None:
    assert command(["ledger", "audit", where]) == 2
    assert text in capsys.readouterr().err
    assert command(["ledger", "accounts", where]) == 2
    assert text in capsys.readouterr().err


def test_receipts_prove_that_a_journal_was_rewritten() -> None:
    """Who keeps a receipt can show that the ledger has told two stories: its digest seals all before it."""

    async def run() -> None:
        store = MemoryStore()
        async with ledger_on(store, Wall()) as ledger:
            ann, bob = await opened(ledger, 2)
            (receipt,) = await accepted(ledger, ann, Pay(bob.identity.id, 1))
            told = ledger.signed(receipt)
        other = MemoryStore()
        async with ledger_on(other, Wall()) as ledger:
            bob, ann = reversed(await opened(ledger, 2))
            await accepted(ledger, ann, Pay(bob.identity.id, 2))
            rewritten = await ledger.store.journal(told.place, 1)
        assert told.digest != rewritten[0].digest.hex()
        assert (await store.journal(told.place, 1))[0].digest.hex() == told.digest

    asyncio.run(run())


def test_an_order_id_is_the_hash_of_what_was_signed() -> None:
    journal = journal_of()
    from live_bridge.ledger.orders import decode, payload

    order = decode(orjson.loads(journal[PAID].body))
    assert journal[PAID].order_id == order_id(order, REALM) == hashlib.sha256(payload(order, REALM)).digest()
