"""The length tables: what ships is sound, and what is not sound is refused with its place."""

import numpy as np
import pytest

from envs.wwwserve import lengths

GOOD = "# source: none\np,prompt_tokens,output_tokens\n0,1,2\n0.5,10,20\n1,30,40\n"


@pytest.mark.parametrize("name", ["chat", "code", "reasoning", "summary"])
def test_a_shipped_table_is_a_quantile_function_with_its_source(name: str) -> None:
    table = lengths.load(name)
    assert name in lengths.names()
    assert table.dtype == np.float64 and table.shape[1] == 3
    assert table[0, 0] == 0.0 and table[-1, 0] == 1.0
    assert (np.diff(table[:, 0]) > 0).all() and (np.diff(table[:, 1:], axis=0) >= 0).all() and (table[:, 1:] >= 1).all()
    head = (lengths._folder() / f"{name}.csv").read_text(encoding="utf-8").split("p,prompt_tokens")[0]
    assert all(f"# {word}:" in head for word in ("source", "licence", "columns", "caveat"))


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [("chat", 1155, 211), ("code", 2048, 28), ("reasoning", 90, 4497)],
    ids=["chat", "code", "reasoning"],
)
def test_a_table_keeps_the_means_of_its_source(name: str, prompt: float, output: float) -> None:
    table = lengths.load(name)
    u = (np.arange(100_000) + 0.5) / 100_000
    assert np.interp(u, table[:, 0], table[:, 1]).mean() == pytest.approx(prompt, rel=0.03)
    assert np.interp(u, table[:, 0], table[:, 2]).mean() == pytest.approx(output, rel=0.05)


def test_an_answer_to_a_reasoning_request_is_never_longer_than_its_limit() -> None:
    assert lengths.load("reasoning")[:, 2].max() == 8192


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="'reasonning' is unknown; did you mean 'reasoning'"):
        lengths.load("reasonning")
    with pytest.raises(ValueError, match="choose one of chat, code, reasoning, summary"):
        lengths.load("zzz")


def test_a_good_text_is_read_as_it_stands() -> None:
    assert lengths.parse(GOOD, "x.csv").tolist() == [[0, 1, 2], [0.5, 10, 20], [1, 30, 40]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompt_tokens", "prompt", "x.csv: the header must be p,prompt_tokens,output_tokens, got p,prompt,output_tokens"),
        ("0.5,10,20", "0.5,ten,20", "x.csv:4: every cell must be a number, got '0.5,ten,20'"),
        ("0.5,10,20", "0.5,10", "x.csv:4: needs 3 finite numbers"),
        ("0.5,10,20", "0.5,nan,20", "x.csv:4: needs 3 finite numbers"),
        ("0,1,2", "0.1,1,2", "x.csv:3: p must start at 0, got 0.1"),
        ("0.5,10,20", "0,10,20", "x.csv:4: p must rise, got 0 after 0"),
        ("0,1,2", "0,0,2", "x.csv:3: prompt_tokens must be >= 1 token, got 0"),
        ("0.5,10,20", "0.5,10,1", "x.csv:4: output_tokens must not fall, got 1 after 2"),
        ("1,30,40\n", "", "x.csv: p must end at 1, got 0.5"),
        (GOOD, "", "x.csv: the header must be p,prompt_tokens,output_tokens, got nothing"),
        ("0,1,2\n0.5,10,20\n1,30,40\n", "", "x.csv: p must end at 1, got no rows"),
    ],
)
def test_a_broken_table_is_refused_by_place_rule_and_value(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        lengths.parse(GOOD.replace(old, new), "x.csv")
    assert message in str(error.value)
