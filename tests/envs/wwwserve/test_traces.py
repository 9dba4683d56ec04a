"""Traces: a good file is read as it is, a bad one is refused with file, line and rule."""

from pathlib import Path

import numpy as np
import pytest

from envs.wwwserve import traces

HEAD = "arrival_s,prompt_tokens,output_tokens\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "trace.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_trace_is_read_with_its_columns_in_any_order_and_comments_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, "# source: none\nname,output_tokens,arrival_s,prompt_tokens\na,3,0.5,2\n# later\nb,6,0.5,5\n")
    found = traces.load(file)
    assert found.dtype == np.float64 and found.tolist() == [[0.5, 2.0, 3.0], [0.5, 5.0, 6.0]]
    assert traces.load(str(file)).tolist() == found.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arrival_s,prompt_tokens\n1,2\n", "needs the columns arrival_s, prompt_tokens, output_tokens; output_tokens missing"),
        ("", "needs the columns .* missing"),
        (HEAD, "holds no request"),
        (HEAD + "2,1,1\n1,1,1\n", "request 2: arrival_s must not fall, got 1; sort the trace by time"),
        (HEAD + "1,1,1\nsoon,1,1\n", "request 2: arrival_s must be a number, got 'soon'"),
        (HEAD + "1,1\n", "request 1: output_tokens must be a number, got None"),
        (HEAD + "-1,1,1\n", "request 1: arrival_s must be a number >= 0, got -1"),
        (HEAD + "nan,1,1\n", "request 1: arrival_s must be a number >= 0, got nan"),
        (HEAD + "1,0,1\n", "request 1: prompt_tokens must be a number >= 1, got 0"),
        (HEAD + "1,1,inf\n", "request 1: output_tokens must be a number >= 1, got inf"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"trace.csv: {words}"):
        traces.load(write(tmp_path, text))


def test_a_file_that_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(HEAD.encode() + b"\xd0\xff\n")
    with pytest.raises(ValueError, match=r"trace\.csv: cannot be read as text: 'utf-8' codec"):
        traces.load(file)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    words = "nothing.csv: no such trace; give one of .*servegen-reasoning, or the path of a CSV file with columns arrival_s"
    with pytest.raises(ValueError, match=words):
        traces.load(tmp_path / "nothing.csv")


OWNED = "provider,arrival_s,prompt_tokens,output_tokens\n1,0,1,1\n0,1,2,2\n1,2,3,3\n"


def test_a_trace_is_dealt_out_by_its_column_or_in_turn(tmp_path: Path) -> None:
    first, second = traces.deal(write(tmp_path, OWNED), 2)
    assert first.tolist() == [[1.0, 2.0, 2.0]] and second.tolist() == [[0.0, 1.0, 1.0], [2.0, 3.0, 3.0]]
    first, second = traces.deal(write(tmp_path, HEAD + "0,1,1\n1,2,2\n2,3,3\n"), 2)
    assert first[:, 0].tolist() == [0.0, 2.0] and second[:, 0].tolist() == [1.0]


@pytest.mark.parametrize("count", [1, 3])
def test_a_trace_of_other_providers_is_refused(tmp_path: Path, count: int) -> None:
    words = rf"trace.csv: column provider must name each of 0 to {count - 1}, got \[0, 1\]"
    with pytest.raises(ValueError, match=words):
        traces.deal(write(tmp_path, OWNED), count)


def test_a_bad_owner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"request 1: provider must be a number >= 0, got -1"):
        traces.deal(write(tmp_path, OWNED.replace("\n1,", "\n-1,")), 2)


@pytest.mark.parametrize("name", traces.names())
def test_a_shipped_trace_says_source_and_licence_and_gives_each_provider_work(name: str) -> None:
    text = (Path(traces.__file__).parent / "traces" / f"{name}.csv").read_text(encoding="utf-8")
    head = [line.split()[1] for line in text.splitlines() if line.startswith("# ") and not line.startswith("#  ")]
    assert head[1:] == ["source", "licence", "changed"]
    dealt = traces.deal(name, 8)
    assert min(len(rows) for rows in dealt) > 100 and len(text) < 200_000
    assert max(rows[:, 1:].max() for rows in dealt) < 100_000


def test_pooling_the_shipped_customers_halves_the_peak_over_the_mean() -> None:
    edges = np.arange(0.0, 1800.1, 12.5)
    loads = [np.histogram(rows[:, 0], edges, weights=rows[:, 2])[0] for rows in traces.deal("servegen-reasoning", 8)]
    peak = [float(np.quantile(load, 0.99) / load.mean()) for load in [*loads, sum(loads)]]
    assert np.mean(peak[:-1]) > 5.0 and peak[-1] < 4.0
    assert np.abs(np.corrcoef(loads)[np.triu_indices(8, 1)]).mean() < 0.2
