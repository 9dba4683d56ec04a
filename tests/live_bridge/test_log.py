"""Structured logs: JSON, one object a line, and no prompt, answer or key in them whoever logs."""

import logging
import sys
from datetime import datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.log import LONGEST_TEXT, PRIVATE, WITHHELD, JsonLines, configure, redact

KEY = "sk-live-Zk3J9aQ81mmP"


@pytest.fixture
def logged(tmp_path):
    """Logs to a file for the length of a test; gives what reads it."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("live_bridge").level
    file = tmp_path / "logs" / "node.jsonl"
    handler = configure("info", file)
    yield lambda: [orjson.loads(line) for line in file.read_bytes().splitlines()]
    for one in [handler, *root.handlers]:
        if one not in before[0]:
            one.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("live_bridge").setLevel(before[2])


def line_of(message, *args, exc_info=None, **extra):
    record = logging.getLogger("live_bridge.test").makeRecord(
        "live_bridge.test", logging.WARNING, "file.py", 1, message, args, exc_info, extra=extra
    )
    return JsonLines().format(record)


def test_a_record_is_one_line_with_time_level_place_and_what_was_given(logged):
    logging.getLogger("live_bridge.node").info(
        "peer %s lost", "berlin", extra={"peer": "ab12", "age_s": 12.5, "alive": False, "wait": None}
    )
    (line,) = logged()
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "info",
        "where": "live_bridge.node",
        "what": "peer berlin lost",
        "peer": "ab12",
        "age_s": 12.5,
        "alive": False,
        "wait": None,
    }


def test_a_level_is_of_our_own_rooms_and_libraries_speak_from_warning_on(logged):
    logging.getLogger("live_bridge.a").debug("no")
    logging.getLogger("live_bridge.a").info("yes")
    logging.getLogger("aiohttp.access").info("no")
    logging.getLogger("asyncio").warning("yes, too")
    assert [line["what"] for line in logged()] == ["yes", "yes, too"]


def test_configuring_again_replaces_the_destination(logged, tmp_path):
    other = tmp_path / "other.jsonl"
    configure("warning", other)
    logging.getLogger("live_bridge").info("not of interest any more")
    logging.getLogger("live_bridge").warning("here")
    assert logged() == []
    assert [orjson.loads(line)["what"] for line in other.read_bytes().splitlines()] == ["here"]


def test_a_rotated_file_is_begun_anew(logged, tmp_path):
    logging.getLogger("live_bridge").info("before")
    file = tmp_path / "logs" / "node.jsonl"
    file.rename(tmp_path / "logs" / "node.jsonl.1")
    logging.getLogger("live_bridge").info("after")
    assert [line["what"] for line in logged()] == ["after"]


def test_without_a_file_logs_go_to_standard_error(logged, capsys):
    handler = configure("info", None)
    assert handler.stream is sys.stderr
    logging.getLogger("live_bridge").info("here")
    assert orjson.loads(capsys.readouterr().err)["what"] == "here"


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_a_field_that_could_hold_content_or_a_key_is_withheld(name):
    line = line_of("something", **{name: "my secret text", name.upper(): ["my secret text"]})
    assert "my secret text" not in line
    assert orjson.loads(line)[name] == WITHHELD


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        f"got header {{'authorization': 'Token {KEY}'}}",
        f"key {KEY} is not known",
        f"bearer  {KEY}",
        f'{{"api_key": "{KEY}"}}',
        f"api-key={KEY}; more",
        f"postgres://node:{KEY}@10.0.0.4:5432/market",
    ],
)
def test_keys_and_passwords_in_a_text_are_withheld_wherever_it_stands(text):
    try:
        {}[text]
    except KeyError:
        line = line_of("failed: %s", text, exc_info=sys.exc_info(), note=text)
    assert KEY not in line
    assert orjson.loads(line)["error"].startswith("Traceback")


def test_ordinary_text_is_left_alone():
    text = "http://10.0.0.4:8101/metrics has no vllm:kv_cache_usage_perc; disk-full, task-9; keys 3"
    assert redact(text) == text


def test_a_long_text_is_cut_and_says_so():
    line = orjson.loads(line_of("x" * 10_000, note="y" * 10_000))
    assert len(line["what"]) < LONGEST_TEXT + 50
    assert line["what"].endswith("[8000 characters more]")
    assert len(line["note"]) < LONGEST_TEXT + 50


def test_a_field_cannot_pass_itself_off_as_the_time_or_the_level():
    line = orjson.loads(line_of("x", level="debug", time="never", where="elsewhere"))
    assert (line["level"], line["where"]) == ("warning", "live_bridge.test")
    assert line["time"] != "never"


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
NAMES = st.text(st.characters(codec="ascii", categories=["L"]), min_size=1)


@given(st.dictionaries(NAMES, st.recursive(VALUES, lambda inner: st.lists(inner) | st.tuples(inner))), st.text())
def test_whatever_is_logged_gives_one_line_of_json(extra, message):
    taken = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    line = line_of("%s", message, **{name: value for name, value in extra.items() if name not in taken})
    assert "\n" not in line
    assert orjson.loads(line)["level"] == "warning"
