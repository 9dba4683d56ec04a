"""Roster rows: only their subject writes them, only newer ones count, and neither ghosts nor liars fill or empty a directory."""

import math
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.identity import Identity
from live_bridge.peers import rows
from live_bridge.peers.addresses import Guard
from live_bridge.peers.rows import Bounds, Directory, News, Row, read, sign, write

NET = "test"
BOUNDS = Bounds(most=1000, silence_s=60.0, beat_s=1.0)
ALICE, BOB, CAROL = (Identity(bytes([k]) * 32) for k in (1, 2, 3))
GUARD = Guard(["10.0.0.0/8"], most=10, timeout_s=1.0)


def row(of: Identity, version: int = 1, **fields: Any) -> Row:
    plain = Row(of.public, "http://10.0.0.5:9000", "node", ("qwen3-8b",), version, 1.5, 0.25, 1.0, 3, 1, leaving=False)
    return plain._replace(**fields)


def entry(of: Identity, version: int = 1, age_s: float = 0.5, network: str = NET, **fields: Any) -> list[Any]:
    text = write(row(of, version, **fields))
    return [of.id, version, age_s, text, sign(of, network, text)]


def ghost(k: int) -> Identity:
    return Identity(k.to_bytes(32, "big"))


class Watched(Directory):
    """A directory that counts what it checks and drops."""

    def __init__(self, bounds: Bounds = BOUNDS, members: Callable[[str], bool] = lambda peer: False) -> None:
        self.counts: list[str] = []
        self.checked = 0
        super().__init__(CAROL.id, NET, bounds, GUARD.check, members, self.counts.append)

    def _verified(self, *parts: Any) -> Row | None:
        self.checked += 1
        return super()._verified(*parts)

    def take(self, *entries: list[Any], now_s: float = 0.0) -> News:
        return self.heard(orjson.dumps(entries), now_s)


def test_a_row_is_written_and_read_back() -> None:
    for kept in (row(ALICE), row(BOB, 7 << 32, models=(), name="Bäcker 🥐", wait_s=0.0, leaving=True)):
        assert read(write(kept)) == kept
    assert row(ALICE).id == ALICE.id


def test_news_is_passed_on_word_for_word() -> None:
    alice = Directory(ALICE.id, NET, BOUNDS, GUARD.check, lambda peer: True, print)
    alice.post(ALICE, row(ALICE, 5), 10.0)
    bob, carol = Watched(), Watched()
    told = alice.export(10.5, {})
    assert bob.heard(told, 100.0).rows == [(row(ALICE, 5), 0.5)]
    passed = bob.export(103.0, {})
    assert orjson.loads(told)[0][3:] == orjson.loads(passed)[0][3:]
    assert carol.heard(passed, 7.0).rows == [(row(ALICE, 5), 3.5)]
    assert carol.get(ALICE.id) == row(ALICE, 5) and bob.get(BOB.id) is None


def test_only_what_the_other_does_not_have_is_sent() -> None:
    carol = Watched()
    news = carol.take(entry(ALICE, 5), entry(BOB, 3))
    assert news.known == {ALICE.id: 5, BOB.id: 3}

    def sent(known: dict[str, int]) -> list[str]:
        return [peer for peer, *_ in orjson.loads(carol.export(0.0, known))]

    assert sent({}) == [ALICE.id, BOB.id]
    assert sent({ALICE.id: 5, BOB.id: 2}) == [BOB.id]
    assert sent({ALICE.id: 6, BOB.id: 3}) == []


def test_a_newer_row_replaces_an_older_one_and_never_the_reverse() -> None:
    carol, restarted = Watched(), (1 << 32) + 1
    kept = 0
    for turn, version in enumerate((5, 4, 5, 6, 1, restarted, 7)):
        news = carol.take(entry(ALICE, version), now_s=turn * 10.0)
        assert [heard.row.version for heard in news.rows] == ([version] if version > kept else [])
        kept = max(kept, version)
        assert carol.get(ALICE.id).version == kept


def test_a_row_that_is_not_newer_costs_no_check_of_its_signature() -> None:
    carol = Watched()
    carol.take(entry(ALICE, 5))
    forged = entry(ALICE, 5)
    forged[3:] = ["nonsense", "nonsense"]
    for _ in range(100):
        assert carol.take(forged, now_s=50.0).rows == []
    assert carol.checked == 1 and carol.counts == []


# S5: a poisoned exchange


@pytest.mark.parametrize("flip", [0x01, 0x20])
def test_no_row_with_a_changed_byte_is_taken(flip: int) -> None:
    carol = Watched()
    plain = orjson.dumps([entry(ALICE, 5)])
    raw = bytearray(plain)
    for k in range(len(raw)):
        raw[k] ^= flip
        news = carol.heard(bytes(raw), 0.0)
        age_alone = [(heard.row, heard.row.version) for heard in news.rows] == [(row(ALICE, 5), 5)]
        assert not news.rows or age_alone, "the age is the one thing that is not signed"
        carol = Watched() if news.rows else carol
        raw[k] ^= flip
    assert len(carol.heard(plain, 0.0).rows) == 1


def test_nobody_writes_a_row_about_another() -> None:
    carol, text = Watched(), write(row(ALICE, 9))
    assert carol.take([ALICE.id, 9, 0.0, text, sign(BOB, NET, text)]).rows == []
    assert carol.take([BOB.id, 9, 0.0, text, sign(ALICE, NET, text)]).rows == []
    assert carol.take([ALICE.id, 10, 0.0, text, sign(ALICE, NET, text)]).rows == []
    assert carol.take(entry(ALICE, 9, network="other")).rows == []
    assert carol.counts == ["row_signature"] * 4 and len(carol) == 0


def test_an_old_signature_does_not_stand_for_a_newer_row() -> None:
    carol = Watched()
    carol.take(entry(ALICE, 5))
    newer, older = entry(ALICE, 6, wait_s=0.0), entry(ALICE, 5)
    assert carol.take([*newer[:4], older[4]], now_s=10.0).rows == []
    assert carol.take([newer[0], 6, 0.0, *older[3:]], now_s=10.0).rows == []
    assert carol.get(ALICE.id) == row(ALICE, 5) and carol.counts == ["row_signature"] * 2


def test_an_incarnation_of_the_future_is_its_owners_own_to_claim() -> None:
    carol = Watched()
    carol.take(entry(ALICE, (1 << 63) - 1))
    assert carol.get(ALICE.id).version == (1 << 63) - 1
    for version in (str(1 << 63), str(1 << 64), "1" * 400, "-1", "1.5", "true", '"7"', "null"):
        assert carol.heard(f'[["{BOB.id}", {version}, 0.0, "", ""]]'.encode(), 0.0).rows == []
    assert carol.counts == ["row_form"] * 8


def test_the_first_forged_row_ends_an_exchange() -> None:
    carol = Watched()
    forged = [[*entry(ghost(k))[:4], "00" * 64] for k in range(100)]
    news = carol.take(entry(ALICE), *forged, entry(BOB))
    assert [heard.row.id for heard in news.rows] == [ALICE.id]
    assert carol.checked == 2 and carol.counts == ["row_signature"]


def test_the_same_peer_twice_in_an_exchange_ends_it() -> None:
    carol = Watched()
    assert len(carol.take(entry(ALICE, 1), entry(ALICE, 2), entry(BOB)).rows) == 1
    assert carol.counts == ["row_form"]


@pytest.mark.parametrize(
    "payload",
    [
        *(
            b"",
            b"{",
            b"null",
            b"{}",
            b"1",
            b'"text"',
            b"[1]",
            b"[[]]",
            b"[[[]]]",
            b"[null]",
            b'[["a", 1, 0.0, ""]]',
            b"\xff\xfe",
            b"[NaN]",
        ),
        *(
            b"[" * 100_000,
            b'[["a", 1, -1, "", ""]]',
            b'[["a", 1, 1e400, "", ""]]',
            b'[["a", 1, "0", "", ""]]',
            b'[[1, 1, 0.0, "", ""]]',
        ),
        b'[["\\ud800", 1, 0.0, "", ""]]',
    ],
)
def test_what_is_no_exchange_is_counted_and_dropped(payload: bytes) -> None:
    carol = Watched()
    assert carol.heard(payload, 0.0) == ([], {})
    assert carol.counts == ["row_form"] and carol.checked == 0


def test_an_oversize_exchange_is_refused_unread() -> None:
    carol = Watched(BOUNDS._replace(most=10))
    assert carol.heard(b" " * (11 * rows.ENTRY_BYTES + 1), 0.0).rows == []
    assert carol.take(*([ghost(k).id, 1, 0.0, "", ""] for k in range(12))).rows == []
    assert carol.counts == ["row_oversize"] * 2 and carol.checked == 0


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"usage": 1.1},
            {"usage": -0.1},
            {"accepts": 2.0},
            {"wait_s": -1.0},
            {"wait_s": math.nan},
            {"wait_s": math.inf},
            {"wait_s": 1e10},
        ),
        *(
            {"wait_s": "1"},
            {"wait_s": True},
            {"duels_won": -1},
            {"duels_won": 1.5},
            {"duels_lost": 1 << 31},
            {"leaving": 0},
            {"leaving": None},
        ),
        *(
            {"name": "n" * 65},
            {"name": 5},
            {"address": "http://" + "a" * 200},
            {"address": None},
            {"models": "qwen"},
            {"models": ["m"] * 33},
        ),
        *({"models": ["m" * 201]}, {"models": [None]}, {"version": -1}, {"version": 1 << 64}, {"name": "n\ud800"[:1] * 70}),
    ],
)
def test_a_row_out_of_range_is_dropped_and_cannot_be_posted(fields: dict[str, Any]) -> None:
    carol = Watched()
    text = (
        write(row(ALICE, 5, **fields)) if "version" not in fields else write(row(ALICE, 5)).replace(":5,", f":{fields['version']},")
    )
    assert read(text) is None
    assert carol.take([ALICE.id, 5, 0.0, text, sign(ALICE, NET, text)]).rows == []
    if "version" not in fields:
        with pytest.raises(ValueError, match="own row"):
            carol.post(CAROL, row(CAROL, 5, **fields), 0.0)


def test_one_posts_only_about_oneself() -> None:
    carol = Watched()
    with pytest.raises(ValueError, match="own row"):
        carol.post(ALICE, row(ALICE), 0.0)
    carol.post(CAROL, row(CAROL), 0.0)
    assert carol.get(CAROL.id) == row(CAROL)


def test_a_row_with_a_missing_or_further_field_is_dropped() -> None:
    fields = orjson.loads(write(row(ALICE)))
    for changed in (fields | {"extra": 1}, {k: v for k, v in fields.items() if k != "leaving"}, [], None, 1):
        assert read(orjson.dumps(changed).decode()) is None
    assert read("") is None and read("{" * 5000) is None
    assert read(orjson.dumps(fields | {"public": "zz" * 32}).decode()) is None


def test_a_text_that_is_too_long_is_dropped_before_it_is_read() -> None:
    carol = Watched()
    text = write(row(ALICE)) + " " * rows.LONGEST_TEXT
    assert carol.take([ALICE.id, 1, 0.0, text, sign(ALICE, NET, text)]).rows == []
    assert carol.counts == ["row_signature"]


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9000", "http://169.254.169.254", "file:///etc/passwd", "http://user@10.0.0.5"]
)
def test_a_row_that_advertises_a_forbidden_address_is_dropped(address: str) -> None:
    carol = Watched()
    assert carol.take(entry(ALICE, address=address), entry(BOB)).rows == [(row(BOB), 0.5)]
    assert carol.counts == ["row_address"] and carol.get(ALICE.id) is None


def haunted(carol: Watched, haunt: list[list[Any]], now_s: float = 0.0) -> int:
    """Exchange until no row is left for later; returns after how many exchanges."""
    payload, exchanges = orjson.dumps(haunt), 0
    while "row_later" in carol.counts or not exchanges:
        carol.counts.clear()
        carol.heard(payload, now_s)
        exchanges += 1
    return exchanges


def test_a_hundred_thousand_ghosts_fill_no_more_than_the_table() -> None:
    """The first thousand are signed and come in; the rest are dropped unread, so it does not matter what they hold."""
    carol = Watched()
    haunted(carol, [entry(ghost(k)) for k in range(1, 1001)])
    payloads = [orjson.dumps([[f"{turn * 1000 + k:040x}", 1, 0.0, "row", "signature"] for k in range(1000)]) for turn in range(99)]
    began = time.process_time()
    for turn, payload in enumerate(payloads):
        assert carol.heard(payload, turn * 0.1).rows == []
    assert time.process_time() - began < 0.1 * 60.0, "a tenth of one core over a period of suspicion"
    assert len(carol) == carol.checked == 1000 and carol.counts == ["row_full"] * 99_000


def test_a_thousand_real_ghosts_are_out_after_one_period_of_silence_and_stay_out() -> None:
    carol = Watched()
    haunt = [entry(ghost(k), age_s=0.0) for k in range(1, 1001)]
    began = time.process_time()
    haunted(carol, haunt)
    spent_s = time.process_time() - began
    assert len(carol) == 1000 and spent_s < 0.1 * 60.0, "a tenth of one core over the period in which they are remembered"
    assert carol.take(entry(ALICE)).rows == [], "no place for a stranger while they are in"
    assert carol.silent(59.0) == []
    assert len(carol.silent(61.0)) == 1000 and len(carol) == 0
    assert carol.take(*haunt, now_s=62.0).rows == [], "old rows are no news"
    assert len(carol.take(entry(ALICE, age_s=0.0), now_s=62.0).rows) == 1


def test_one_exchange_costs_a_bounded_number_of_checks_and_the_rest_comes_with_the_next() -> None:
    carol = Watched()
    haunt = [entry(ghost(k)) for k in range(1, 201)]
    news = carol.take(*haunt)
    assert len(news.rows) == carol.checked == rows.CHECKS and len(news.known) == 200
    assert haunted(carol, haunt) == 3 and len(carol) == carol.checked == 200


def test_no_row_is_left_for_later_for_ever() -> None:
    """All beat faster than exchanges come, and more of them than one exchange checks."""
    carol = Watched(BOUNDS._replace(beat_s=0.5))
    heard: dict[str, int] = {}
    for turn in range(1, 9):
        for one in carol.take(*(entry(ghost(k), turn) for k in range(1, 201)), now_s=float(turn)).rows:
            heard[one.row.id] = heard.get(one.row.id, 0) + 1
    assert len(heard) == 200 and min(heard.values()) >= 2


def test_ghosts_that_keep_beating_cost_one_check_each_beat() -> None:
    carol = Watched(Bounds(most=50, silence_s=60.0, beat_s=1.5))
    for turn in range(200):  # twenty seconds, ten exchanges a second
        carol.take(*(entry(ghost(k), turn + 1) for k in range(1, 51)), now_s=turn * 0.1)
    assert carol.checked <= 50 * (20 / 1.5 + 2)
    assert "row_early" in carol.counts


def test_a_member_finds_a_place_among_ghosts_and_a_stranger_does_not() -> None:
    carol = Watched(Bounds(most=10, silence_s=60.0, beat_s=1.0), members=lambda peer: peer in {ALICE.id, BOB.id})
    carol.post(CAROL, row(CAROL), 0.0)
    for k in range(1, 12):
        carol.take(entry(ghost(k)), now_s=k * 0.1)
    assert len(carol) == 11 and carol.get(ghost(11).id) is None
    assert len(carol.take(entry(ALICE), entry(BOB), now_s=2.0).rows) == 2
    assert len(carol) == 11 and carol.get(ghost(1).id) is None and carol.get(ghost(2).id) is None, (
        "those silent for longest made room"
    )
    assert carol.get(CAROL.id) is not None


def test_members_never_make_room_for_one_another() -> None:
    carol = Watched(Bounds(most=3, silence_s=60.0, beat_s=1.0), members=lambda peer: True)
    carol.take(*(entry(ghost(k)) for k in range(1, 4)))
    assert carol.take(entry(ALICE)).rows == [] and carol.counts == ["row_full"]
    assert [carol.get(ghost(k).id) is not None for k in range(1, 4)] == [True] * 3


def test_a_stranger_that_has_become_a_member_stays() -> None:
    members: set[str] = set()
    carol = Watched(Bounds(most=2, silence_s=60.0, beat_s=1.0), members=members.__contains__)
    carol.take(entry(ALICE), entry(BOB), now_s=0.0)
    members |= {ALICE.id, ghost(1).id, ghost(2).id}
    carol.take(entry(ghost(1)), entry(ghost(2)), now_s=1.0)
    assert carol.get(ALICE.id) is not None and carol.get(BOB.id) is None and carol.get(ghost(2).id) is None


def test_newcomers_come_at_once_and_then_by_a_trickle() -> None:
    carol = Watched(Bounds(most=60, silence_s=60.0, beat_s=1.0))
    assert len(carol.take(*(entry(ghost(k)) for k in range(1, 61))).rows) == 60 <= rows.CHECKS
    for k in range(1, 61):
        carol.forget(ghost(k).id)
    late = [entry(ghost(k)) for k in range(61, 81)]
    assert len(carol.take(*late, now_s=5.0).rows) == 5
    assert carol.counts == ["row_full"] * 15


def test_a_liar_about_ages_puts_nobody_out() -> None:
    carol = Watched()
    carol.take(entry(ALICE, 1, age_s=1.0), now_s=0.0)
    (heard,) = carol.take(entry(ALICE, 2, age_s=1e8), now_s=10.0).rows
    assert heard.age_s == 11.0, "it was written after the one before"
    assert carol.silent(69.0) == [] and carol.silent(71.0) == [ALICE.id]


def test_a_row_that_is_older_than_the_silence_is_no_newcomer() -> None:
    carol = Watched()
    assert carol.take(entry(ALICE, age_s=61.0)).rows == [] and carol.checked == 0
    assert len(carol.take(entry(ALICE, age_s=59.0)).rows) == 1


def test_who_was_put_out_comes_back_with_a_newer_row_only() -> None:
    carol = Watched()
    carol.take(entry(ALICE, 5))
    carol.forget(ALICE.id)
    carol.forget(BOB.id)
    assert carol.take(entry(ALICE, 5), now_s=10.0).rows == [] and carol.checked == 1
    assert len(carol.take(entry(ALICE, 6), now_s=10.0).rows) == 1


def test_the_memory_of_those_put_out_is_bounded() -> None:
    carol = Watched(Bounds(most=5, silence_s=1.0, beat_s=0.1))
    for k in range(1, 60):
        carol.take(entry(ghost(k), age_s=0.0), now_s=float(k))
        carol.forget(ghost(k).id)
    assert len(carol._past) == 20


def test_nobody_else_speaks_for_this_node() -> None:
    carol = Watched()
    carol.post(CAROL, row(CAROL, 5), 0.0)
    assert carol.take(entry(CAROL, 4)).rows == [] and carol.outranked == -1
    assert carol.take([CAROL.id, 7, 0.0, entry(CAROL, 7)[3], "00" * 64]).rows == [] and carol.outranked == -1
    assert carol.take(entry(CAROL, 9)).rows == [], "signed with its own key in a former life"
    assert carol.outranked == 9 and carol.get(CAROL.id).version == 5
    assert carol.silent(1e6) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=6),
    )
)
def test_no_json_breaks_a_directory(value: Any) -> None:
    carol = Watched()
    assert carol.heard(orjson.dumps(value), 0.0).rows == []
    assert carol.take(value).rows == [] and len(carol) == 0
