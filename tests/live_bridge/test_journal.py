"""The journal: on its way to the OS before any effect, whole after a crash, one life at a time, and nothing lost when it turns."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
import timeit
from pathlib import Path

import orjson
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from live_bridge import journal as journalling
from live_bridge.journal import Journal, digest, read, versions
from live_bridge.slip import Slipped

HEADER = {"format": 1, "me": "ab" * 20, "key": (1 << 63) - 25, "terms": {"duel_rate": 0.1, "judges": 3}, "slo_s": 200.0}
ROOT = Path(__file__).parents[2]


def broken(error):
    raise AssertionError(f"the disk was well, and yet: {error}")


def begin(path, **more):
    return Journal(path, HEADER, **{"soon": None, "failed": broken, **more})


def event(k):
    return [["arrive", k / 3, f"ab.1.{k}", 100 + k, 20], [["start", f"ab.1.{k}"]]]


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    path = tmp_path / "home" / "journal.jsonl"
    lines = [event(k) for k in range(50)] + [
        [["load", 1e-308, 0, 0.1 + 0.2], []],
        [["tick", 1.0, 2.0, {"é\n": 3}], [["unstake", 1 << 62]]],
    ]
    journal = begin(path)
    for line in lines:
        journal.write(line)
    journal.close()
    head, *found = read(path)
    assert {name: head[name] for name in HEADER} == HEADER
    assert found == lines
    assert [type(value) for value in found[50][0]] == [str, float, int, float]


def test_the_header_says_what_wrote_it_and_of_which_settings(tmp_path):
    begin(tmp_path / "journal.jsonl").close()
    head = next(read(tmp_path / "journal.jsonl"))
    assert head["versions"] == versions()
    assert set(head["versions"]) == {"wwwserve", "python"}
    assert head["digest"] == digest(HEADER)
    assert head["key"] == HEADER["key"]
    assert (head["life"], head["part"]) == (1, 0)


def test_the_digest_is_of_the_settings_not_of_their_order():
    turned = dict(reversed(HEADER.items()))
    assert digest(turned) == digest(HEADER)
    assert digest({**HEADER, "slo_s": 201.0}) != digest(HEADER)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_line_is_with_the_os_before_any_task_that_follows_it_runs(tmp_path, run):
    path = tmp_path / "journal.jsonl"
    seen = []

    async def effect(k):
        seen.append((k, [line[0][2] for line in list(read(path))[1:]]))

    async def life():
        journal = begin(path, soon=asyncio.get_running_loop().call_soon)
        woken = asyncio.get_running_loop().create_future()

        async def waiter():
            await woken
            await effect("woken")

        waiting = asyncio.create_task(waiter())
        await asyncio.sleep(0)
        for k in range(3):
            journal.write(event(k))
            if k == 1:
                woken.set_result(None)
        tasks = [asyncio.create_task(effect(k)) for k in range(2)]
        await asyncio.gather(waiting, *tasks)
        journal.write(event(9))
        await asyncio.create_task(effect("later"))
        journal.close()

    run(life())
    first = ["ab.1.0", "ab.1.1", "ab.1.2"]
    assert dict(seen[:3]) == {0: first, 1: first, "woken": first}
    assert seen[3] == ("later", [*first, "ab.1.9"])


def test_one_turn_of_the_loop_is_one_write(tmp_path, monkeypatch):
    calls = []
    write = os.write
    monkeypatch.setattr(journalling.os, "write", lambda file, raw: calls.append(len(raw)) or write(file, raw))

    async def life():
        journal = begin(tmp_path / "journal.jsonl", soon=asyncio.get_running_loop().call_soon)
        for k in range(200):
            journal.write(event(k))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(calls) == 1
        journal.close()

    asyncio.run(life())
    assert len(list(read(tmp_path / "journal.jsonl"))) == 201


def test_an_event_costs_microseconds(tmp_path):
    async def life():
        journal = begin(tmp_path / "journal.jsonl", soon=lambda _: None)
        line = event(7)
        took_s = min(timeit.repeat(lambda: journal.write(line), timer=time.process_time, number=300, repeat=40)) / 300
        journal.close()
        return took_s

    assert asyncio.run(life()) <= 5e-6


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path, caplog, cut):
    path = tmp_path / "journal.jsonl"
    journal = begin(path)
    for k in range(5):
        journal.write(event(k))
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read(path))[1:] == [event(k) for k in range(4)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].line == 6


@given(cut=st.integers(0, 2_000))
def test_however_short_the_file_is_cut_the_lines_before_the_cut_are_read(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    journal = begin(path)
    lines = [event(k) for k in range(20)]
    for line in lines:
        journal.write(line)
    journal.close()
    raw = path.read_bytes()
    kept = raw[: min(cut, len(raw))]
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    if whole == 0:
        with pytest.raises(Slipped, match="does not begin with a journal's header"):
            list(read(path))
    else:
        assert list(read(path))[1:] == lines[: whole - 1]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = begin(path)
    for k in range(4):
        journal.write(event(k))
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b'[["arrive",0.3\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(Slipped, match=r"journal.jsonl: line 3 is damaged .*only up to there"):
        list(read(path))


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('["arrive", 1]\n')
    with pytest.raises(Slipped, match="does not begin with a journal's header"):
        list(read(path))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    "wrap", [lambda x: [["load", 1.0, x], []], lambda x: [["tick", 1.0, {"a": [x]}], []], lambda x: [["a"], [("b", x)]]]
)
def test_a_number_that_json_would_lose_is_refused(tmp_path, value, wrap):
    journal = begin(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match="journal: a number must be finite"):
        journal.write(wrap(value))
    journal.write([["answer", None, "null"], []])
    journal.close()
    assert list(read(tmp_path / "journal.jsonl"))[1:] == [[["answer", None, "null"], []]]


def test_a_value_that_json_has_no_form_for_is_refused_and_leaves_no_half_line(tmp_path):
    journal = begin(tmp_path / "journal.jsonl")
    with pytest.raises(TypeError):
        journal.write([["arrive", object()], []])
    journal.write(event(1))
    journal.close()
    assert list(read(tmp_path / "journal.jsonl"))[1:] == [event(1)]


def test_each_life_is_a_journal_of_its_own_and_earlier_ones_stay(tmp_path):
    path = tmp_path / "journal.jsonl"
    for life in range(1, 4):
        journal = begin(path)
        journal.write(event(life))
        journal.close()
    assert sorted(file.name for file in tmp_path.glob("*.jsonl")) == ["journal.1.0.jsonl", "journal.2.0.jsonl", "journal.jsonl"]
    for name, life in (("journal.1.0.jsonl", 1), ("journal.2.0.jsonl", 2), ("journal.jsonl", 3)):
        head, *lines = read(tmp_path / name)
        assert head["life"] == life
        assert lines == [event(life)]


def test_a_new_life_begins_beside_a_torn_or_foreign_file(tmp_path):
    path = tmp_path / "journal.jsonl"
    for k, left in enumerate([b'{"life":', b"", b"[1]\n", b"\0" * 50], 1):
        path.write_bytes(left)
        journal = begin(path)
        journal.close()
        assert next(read(path))["life"] == 2 * k
        assert (tmp_path / f"journal.{2 * k - 1}.0.jsonl").read_bytes() == left
        # the life that has just ended is moved aside by the next round's beginning
        path.rename(tmp_path / f"journal.{2 * k}.0.jsonl")


def test_a_long_life_is_read_over_all_its_parts_without_a_gap(tmp_path):
    path = tmp_path / "journal.jsonl"
    begin(path).close()
    journal = begin(path, part_bytes=2_000)
    lines = [event(k) for k in range(300)]
    for line in lines:
        journal.write(line)
        assert path.stat().st_size <= 2_000 + 400
    journal.close()
    parts = list(tmp_path.glob("journal.2.*.jsonl"))
    assert len(parts) >= 8
    head, *found = read(path)
    assert found == lines
    assert (head["life"], head["part"]) == (2, 0)
    assert not list(tmp_path.glob("*.next"))


def test_an_earlier_life_in_parts_is_read_through_its_last_part(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = begin(path, part_bytes=2_000)
    for k in range(60):
        journal.write(event(k))
    journal.close()
    begin(path).close()
    last = max(tmp_path.glob("journal.1.*.jsonl"), key=lambda part: int(part.stem.split(".")[2]))
    assert list(read(last))[1:] == [event(k) for k in range(60)]


def lives(path, count):
    """Several lives, each of some parts; the last one goes on."""
    for life in range(count):
        journal = begin(path, part_bytes=400)
        for k in range(200):
            journal.write(event(k))
        if life < count - 1:
            journal.close()
    for file in path.parent.glob("journal.*.jsonl"):
        os.utime(file, (1000 * int(file.name.split(".")[1]),) * 2)  # as old as its life
    return journal


def test_old_lives_are_deleted_whole_and_the_one_under_way_never(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = lives(path, 4)
    counts = [len(list(tmp_path.glob(f"journal.{life}.*.jsonl"))) for life in (1, 2, 3, 4)]
    assert min(counts) > 2
    assert journal.forget(1000.0) == 0
    assert journal.forget(2500.0) == counts[0] + counts[1]
    left = {int(file.name.split(".")[1]) for file in tmp_path.glob("journal.*.jsonl")}
    assert left == {3, 4}
    assert len(list(read(tmp_path / f"journal.3.{counts[2] - 1}.jsonl"))) == 201
    assert journal.forget(1e12) == counts[2]
    assert len(list(tmp_path.glob("journal.4.*.jsonl"))) == counts[3]
    journal.close()
    assert len(list(read(path))) == 201
    begin(path).close()
    assert next(read(path))["life"] == 5  # a life has a number of its own, whatever was deleted before it


def test_a_life_is_as_old_as_its_youngest_part_and_goes_from_its_end(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    journal = lives(path, 2)
    parts = sorted(tmp_path.glob("journal.1.*.jsonl"), key=lambda file: int(file.name.split(".")[2]))
    os.utime(parts[1], (9000, 9000))
    assert journal.forget(5000.0) == 0
    gone, unlink = [], Path.unlink

    def stuck(file):
        if len(gone) == 2:
            raise OSError(errno.EROFS, "read-only")
        gone.append(file)
        unlink(file)

    monkeypatch.setattr(Path, "unlink", stuck)
    with pytest.raises(OSError, match="read-only"):
        journal.forget(9001.0)
    assert gone == parts[:-3:-1]
    assert len(list(read(parts[-3]))) > 1  # what is left can be read
    monkeypatch.undo()
    assert journal.forget(9001.0) == len(parts) - 2
    journal.close()


def test_a_missing_part_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = begin(path, part_bytes=2_000)
    for k in range(100):
        journal.write(event(k))
    journal.close()
    (tmp_path / "journal.1.1.jsonl").unlink()
    with pytest.raises(Slipped, match=r"journal\.1\.1\.jsonl: is not there, and .*journal\.jsonl continues it"):
        list(read(path))


def test_a_part_of_another_life_is_not_taken_for_one_of_this(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = begin(path, part_bytes=2_000)
    for k in range(60):
        journal.write(event(k))
    journal.close()
    stranger = tmp_path / "journal.1.0.jsonl"
    lines = stranger.read_bytes().splitlines(keepends=True)
    head = orjson.loads(lines[0])
    lines[0] = orjson.dumps({**head, "digest": "0" * 64}) + b"\n"
    stranger.write_bytes(b"".join(lines))
    with pytest.raises(Slipped, match="has another header"):
        list(read(path))


def test_a_file_that_a_log_rotation_moves_away_loses_no_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = begin(path)
    journal.write(event(1))
    path.rename(tmp_path / "taken.jsonl")
    journal.write(event(2))
    journal.close()
    assert list(read(tmp_path / "taken.jsonl"))[1:] == [event(1), event(2)]


def test_two_nodes_cannot_share_a_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = begin(path)
    with pytest.raises(Slipped, match=r"journal\.jsonl: another node writes here; give each node a home of its own"):
        begin(path)
    journal.write(event(1))
    journal.close()
    begin(path).close()
    assert list(read(tmp_path / "journal.1.0.jsonl"))[1:] == [event(1)]


def test_a_full_disk_is_told_and_what_was_held_follows_when_there_is_room(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    told = []
    journal = begin(path, failed=told.append)
    journal.write(event(0))
    write = os.write
    room = [11]

    def short(file, raw):
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(file, bytes(raw[: room[0]]))
        room[0] -= taken
        return taken

    monkeypatch.setattr(journalling.os, "write", short)
    journal.write(event(1))
    journal.write(event(2))
    assert [error.errno for error in told] == [errno.ENOSPC] * 2
    assert list(read(path))[1:] == [event(0)]  # eleven bytes of the next line are there: torn, and left out
    monkeypatch.setattr(journalling.os, "write", write)
    journal.write(event(3))
    journal.close()
    assert list(read(path))[1:] == [event(k) for k in range(4)]


def test_a_part_that_cannot_be_begun_leaves_the_full_one_in_use(tmp_path):
    path = tmp_path / "journal.jsonl"
    told = []
    journal = begin(path, part_bytes=2_000, failed=told.append)
    while not (tmp_path / "journal.1.0.jsonl").exists():
        journal.write(event(0))
    count = len(list(read(path))) - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(int(name.name) for name in Path("/proc/self/fd").iterdir()), hard))
    try:
        for k in range(40):
            journal.write(event(k))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told and {error.errno for error in told} == {errno.EMFILE}
    journal.write(event(40))
    journal.close()
    assert list(read(path))[1 + count :] == [event(k) for k in range(41)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= in_use


def test_after_kill_9_every_line_that_had_an_effect_is_there(tmp_path):
    program = f"""
        import asyncio, itertools, os
        from pathlib import Path
        from live_bridge.journal import Journal

        async def say(k):
            os.write(1, b"%d\\n" % k)

        async def life():
            soon = asyncio.get_running_loop().call_soon
            journal = Journal(Path({str(tmp_path / "journal.jsonl")!r}), {{"format": 1}}, soon, print)
            for k in itertools.count():
                journal.write([["arrive", float(k)], []])
                await asyncio.create_task(say(k))

        asyncio.run(life())
    """
    chance = random.Random(3)
    for life in range(1, 6):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stdout=subprocess.PIPE)
        seen = child.stdout.readline() and child.stdout.read(chance.randrange(50, 4_000))
        child.send_signal(signal.SIGKILL)
        seen += child.stdout.read()
        child.wait()
        child.stdout.close()
        effects = int(seen.splitlines()[-2])
        head, *lines = read(tmp_path / "journal.jsonl")
        assert head["life"] == life
        assert len(lines) > effects
        assert [line[0][1] for line in lines] == [float(k) for k in range(len(lines))]


def sealed_life(tmp_path, **more):
    journal = begin(tmp_path / "journal.jsonl", **more)
    for k in range(40):
        journal.write(event(k))
    journal.close()
    return tmp_path / "journal.jsonl"


def test_one_changed_digit_is_found_wherever_it_stands(tmp_path):
    path = sealed_life(tmp_path)
    whole = path.read_bytes()
    digits = [at for at, byte in enumerate(whole) if chr(byte).isdigit()]
    for at in random.Random(0).sample(digits, 300):
        changed = bytearray(whole)
        changed[at] = ord("0") + (changed[at] - ord("0") + 1) % 10
        path.write_bytes(changed)
        with pytest.raises(Slipped, match="line|is not there|header"):
            list(read(path))


def test_a_line_that_is_missing_or_stands_twice_is_found(tmp_path):
    path = sealed_life(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for other in (lines[:5] + lines[6:], lines[:5] + lines[4:], [*lines[:5], lines[6], lines[5], *lines[7:]]):
        path.write_bytes(b"".join(other))
        with pytest.raises(Slipped, match="line 6: its seal is not that of all up to there|line 7: its seal"):
            list(read(path))


def test_a_changed_line_of_an_earlier_part_is_found(tmp_path):
    path = sealed_life(tmp_path, part_bytes=600)
    assert len(list(read(path))) == 41
    part = tmp_path / "journal.1.1.jsonl"
    part.write_bytes(part.read_bytes().replace(b"arrive", b"Arrive", 1))
    with pytest.raises(Slipped, match=r"journal\.1\.1\.jsonl: line 2: its seal"):
        list(read(path))
