"""A ledger that is killed has lost nothing that it has confirmed, has half of nothing, and resolves every hold in its time."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from live_bridge.ledger.audit import audit_store
from live_bridge.ledger.journal import Entry
from live_bridge.ledger.sheet import OPEN
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.store import StoreError
from market.terms import MICRO

from .stage import ledger_on
from .victim import PEOPLE, TTL_S

ROOT = Path(__file__).parents[3]


def live_and_die(path: Path, moment: str = "", after_s: float = 0.0) -> list[tuple[int, str]]:
    """Run a victim until it is killed; returns what it was told."""
    words = [sys.executable, "-m", "tests.live_bridge.ledger.victim", str(path), moment]
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, "RULES": "python"}, stdout=subprocess.PIPE, text=True) as victim:
        told = []
        for line in victim.stdout:
            if line == "ready\n":
                break
            told.append(line)
        if not moment:
            time.sleep(after_s)  # the point of the test: any moment will do
            victim.kill()
        told += victim.stdout.read().splitlines()
    assert victim.returncode == -signal.SIGKILL
    return [(int(line.split()[0]), line.split()[1]) for line in told if line.endswith("\n") or len(line.split()[-1]) == 64]


async def prove(path: Path, told: list[tuple[int, str]]) -> list[Entry]:
    """Hold the file to all that a ledger promises after a crash; returns its journal."""
    async with ledger_on(SqliteStore(path), time.time) as ledger:
        store = ledger.store
        assert await store.integrity() == "ok"
        await audit_store(store)
        journal = await store.journal(0, 10**9)
        for place, digest in told:
            assert journal[place].digest.hex() == digest, f"entry {place} was confirmed, and is gone"
        at_most_us = journal[-1].at_us + round(TTL_S * 1e6)
        assert all(hold.expires_us <= at_most_us for hold in (await store.state()).holds)
    async with ledger_on(SqliteStore(path), lambda: time.time() + TTL_S) as ledger:
        accounts = await ledger.accounts()
        assert sum(sum(account) for account in accounts.values()) == PEOPLE * 102 * MICRO
        assert sum(account.escrow_micro for account in accounts.values()) == 0
        assert all(hold.state != OPEN for hold in (await ledger.store.state()).holds)
        await audit_store(ledger.store)
    return journal


@pytest.mark.parametrize("moment", ["held", "apply", "commit", "answer"])
def test_a_ledger_killed_at_the_worst_moment_keeps_its_word(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "l.sqlite"
    told = live_and_die(path, moment)
    assert len(told) >= 20
    journal = asyncio.run(prove(path, told))
    lead = journal[-1].place - told[-1][0]
    assert lead >= 0
    if moment == "answer":
        assert lead > 0, "it died between commit and answer"


def kill_often(path: Path, times: int) -> None:
    """Kill one ledger again and again, at random moments of its life."""
    chance = random.Random(times)
    for _ in range(times):
        told = live_and_die(path, after_s=chance.uniform(0.0, 0.15))
        shutil.copytree(path.parent, path.parent.parent / "copy")
        asyncio.run(prove(path.parent.parent / "copy" / path.name, told))
        shutil.rmtree(path.parent.parent / "copy")


def test_a_ledger_killed_at_random_moments_keeps_its_word(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    kill_often(tmp_path / "home" / "l.sqlite", 4)


@pytest.mark.slow
def test_a_ledger_killed_two_hundred_times_keeps_its_word(tmp_path: Path) -> None:
    for life in range(20):
        (tmp_path / str(life) / "home").mkdir(parents=True)
        kill_often(tmp_path / str(life) / "home" / "l.sqlite", 10)


def tear(path: Path, into: Path, length: int) -> list[Entry] | None:
    """Copy a ledger with the first `length` bytes of its write-ahead log; returns the journal that is left, or None."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    shutil.copy(path, into / path.name)
    (into / f"{path.name}-wal").write_bytes(Path(f"{path}-wal").read_bytes()[:length])

    async def left() -> list[Entry] | None:
        try:
            store = SqliteStore(into / path.name, make=False)
        except StoreError:
            return None  # torn before the first table was made
        assert await store.integrity() == "ok"
        journal = await store.journal(0, 10**9)
        if journal:
            await audit_store(store)
        await store.close()
        return journal

    return asyncio.run(left())


def test_a_torn_log_leaves_a_shorter_journal_that_is_good(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    told = live_and_die(path, "held")
    size = Path(f"{path}-wal").stat().st_size
    chance = random.Random(1)
    whole = tear(path, tmp_path / "torn", size)
    assert whole is not None and whole[-1].place >= told[-1][0]
    left = []
    for length in sorted({0, 1, 32, size - 1, *(chance.randrange(size) for _ in range(25))}):
        journal = tear(path, tmp_path / "torn", length) or []
        assert journal == whole[: len(journal)]
        left.append(len(journal))
    assert left == sorted(left)
    assert len(set(left)) > 5


def test_a_log_with_a_damaged_page_is_read_up_to_it(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    live_and_die(path, "held")
    log = Path(f"{path}-wal")
    good = log.read_bytes()
    chance = random.Random(2)
    whole = tear(path, tmp_path / "torn", len(good))
    assert whole is not None
    for _ in range(15):
        bad = bytearray(good)
        bad[chance.randrange(32, len(bad))] ^= 0xFF
        log.write_bytes(bytes(bad))
        journal = tear(path, tmp_path / "torn", len(bad)) or []
        assert journal == whole[: len(journal)]
