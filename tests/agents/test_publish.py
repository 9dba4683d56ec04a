"""A folder or file is there whole or not at all, also when the process is killed in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agents import publish
from agents.publish import whole_folder, write_whole

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b")


def put(target: Path, text: str) -> None:
    with whole_folder(target, NAMES) as staging:
        for name in NAMES:
            (staging / name).write_text(text)


def read(target: Path) -> list[str]:
    return [(target / name).read_text() for name in NAMES]


def test_a_folder_appears_with_all_its_files_and_nothing_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "deep" / "x", "1")
    assert read(tmp_path / "deep" / "x") == ["1", "1"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]


def test_a_former_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    put(tmp_path / "x", "1")
    put(tmp_path / "x", "2")
    assert read(tmp_path / "x") == ["2", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_former_folder_is_replaced_where_names_cannot_be_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_exchange", lambda a, b: False)
    put(tmp_path / "x", "1")
    put(tmp_path / "x", "2")
    assert read(tmp_path / "x") == ["2", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_fails_half_way_leaves_the_former_folder_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "x", "1")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "x", NAMES) as staging:
        (staging / "a").write_text("2")
        raise ZeroDivisionError
    assert read(tmp_path / "x") == ["1", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_with_something_else_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="x: holds thesis.tex, which would be lost; give another name or move it away"):
        put(tmp_path / "x", "1")
    (tmp_path / "y").write_text("precious")
    with pytest.raises(FileExistsError, match="y: is a file"):
        put(tmp_path / "y", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.json", b"1")
    write_whole(tmp_path / "x.json", b"22")
    assert (tmp_path / "x.json").read_bytes() == b"22"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


WRITER = """
import sys
from pathlib import Path
from agents.publish import whole_folder
target = Path(sys.argv[1])
for generation in range(1_000_000):
    with whole_folder(target, ("a", "b")) as staging:
        for name in ("a", "b"):
            with (staging / name).open("w") as file:
                for _ in range(50):
                    file.write(f"{generation}\\n")
                    file.flush()
    print(generation, flush=True)
"""


@pytest.mark.parametrize("until", [1, 4, 9])
def test_a_killed_writer_leaves_a_whole_folder_and_the_next_one_tidies_up(tmp_path: Path, until: int) -> None:
    target = tmp_path / "x"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == until:
            break
    os.kill(writer.pid, signal.SIGKILL)
    writer.stdout.close()
    writer.wait()
    first, second = read(target)
    assert first == second and len(set(first.split())) == 1 and first.count("\n") == 50
    put(target, "1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
