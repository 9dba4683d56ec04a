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


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing.csv: no such trace; give the path of a CSV file with columns arrival_s"):
        traces.load(tmp_path / "nothing.csv")
