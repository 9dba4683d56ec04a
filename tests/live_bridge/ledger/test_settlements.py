"""The benchmark of settlements does what it says: real files, every signature, every order confirmed."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks import settlements
from live_bridge.ledger.audit import audit_store
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import OrderError, Realm, check
from live_bridge.ledger.sqlite import SqliteStore


@pytest.mark.parametrize("asking", [1, 8])
def test_every_settlement_is_in_the_journal(tmp_path: Path, asking: int) -> None:
    path = tmp_path / "l.sqlite"
    rate = settlements.settled(SqliteStore(path), settlements.pairs(24), asking)
    assert rate.wall > 0.0 and rate.cpu > 0.0

    async def proved():
        store = SqliteStore(path, make=False)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
        verdict = await audit_store(store)
        holds = (await store.state()).holds
        await store.close()
        return verdict, holds

    verdict, holds = asyncio.run(proved())
    assert verdict.entries == 1 + settlements.NODES + 2 * 24 and verdict.open_holds == 0
    assert all(hold.digest and hold.paid_micro == settlements.AMOUNT_MICRO for hold in holds)


def test_an_order_that_is_refused_ends_the_benchmark() -> None:
    pair = settlements.pairs(1)[0]
    with pytest.raises(SystemExit, match="refused an order"):
        settlements.settled(MemoryStore(), [settlements.Pair(pair.settle, pair.hold)], 1)


def test_what_verifies_signatures_alone_verifies_all_three() -> None:
    (pair,) = settlements.pairs(1)
    assert settlements.verified([pair]).wall > 0.0
    with pytest.raises(OrderError):
        check(pair.hold, Realm("other", settlements.LEDGER.id))
    assert pair.settle.terms.delivery is not None


def test_the_report_names_the_target_and_the_naive_way(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(settlements, "measure", lambda folder, count, repeats: settlements_of(folder))
    monkeypatch.setattr("sys.argv", ["settlements", "--quick", "--folder", str(tmp_path), "--json", str(tmp_path / "line.json")])
    settlements.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["target_s"] == 5000 and set(line["settlements_s"]) == {"grouped", "one_by_one"}
    assert line["grouped_over_one_by_one"] > 0.0 and line["sync_us"] > 0.0
    assert json.loads((tmp_path / "line.json").read_text()) == line


def settlements_of(folder: Path):
    """The benchmark in little."""
    grouped = settlements.settled(SqliteStore(folder / "a.sqlite"), settlements.pairs(8), 8)
    return {"grouped": [grouped], "one by one": [settlements.settled(SqliteStore(folder / "b.sqlite"), settlements.pairs(2), 1)]}
