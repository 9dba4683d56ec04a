"""Emulated engines judge each other by the marks of their quality, as the simulator has it."""

import json
from collections import Counter

import pytest

from live_bridge.backends.verdict import MARK, letter, mark
from live_bridge.peers.judge import prompt, read_letter


def _asked(a: str, b: str) -> bytes:
    return json.dumps({"messages": prompt("why?", a, b, 16_000)}).encode()


def _answer(quality: float, text: str = "because") -> str:
    return text + mark(quality).decode()


def test_the_mark_is_read_as_it_was_written() -> None:
    found = MARK.search(_answer(-1.25))
    assert found is not None and float(found[1]) == -1.25


def test_a_much_better_answer_wins_whichever_is_shown_first() -> None:
    assert letter(_asked(_answer(9.0), _answer(-9.0)), 1) == b"A"
    assert letter(_asked(_answer(-9.0), _answer(9.0)), 1) == b"B"


@pytest.mark.parametrize("seed", range(20))
def test_one_judge_sees_two_answers_the_same_in_both_orders(seed: int) -> None:
    a, b = _answer(0.3, "one"), _answer(0.0, "two")
    assert {letter(_asked(a, b), seed), letter(_asked(b, a), seed)} == {b"A", b"B"}


def test_judges_vote_by_the_logistic_chance_of_the_difference() -> None:
    votes = Counter(letter(_asked(_answer(1.0, f"one {k}"), _answer(0.0, f"two {k}")), k) for k in range(600))
    assert votes[b"A"] / 600 == pytest.approx(0.731, abs=0.06)


def test_the_verdict_is_one_that_the_judge_understands() -> None:
    found = letter(_asked(_answer(9.0), _answer(-9.0)), 1)
    assert found is not None and read_letter(found.decode()) == "A"


def test_a_mark_survives_a_long_answer_whose_middle_is_left_out() -> None:
    assert letter(_asked(_answer(9.0, "x" * 50_000), _answer(-9.0, "y" * 50_000)), 1) == b"A"


@pytest.mark.parametrize(
    "body", [b'{"messages":[{"role":"user","content":"hello"}]}', b'{"prompt":"<<ANSWER A 00>>"}', _asked("plain", _answer(1.0))]
)
def test_what_is_no_judges_prompt_with_two_marks_has_no_verdict(body: bytes) -> None:
    assert letter(body, 1) is None
