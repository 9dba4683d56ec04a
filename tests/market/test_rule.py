"""The rule decorator: which text a compiled rule stands for, which modes there are, and records in both."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from market import rule as room
from market.rule import COMPILED, fill, layout, record_class, records, rule, to_array

ROOT = Path(__file__).parents[2]
KIND = layout(credit_micro=int, mean_s=float, heap=(int, 4), marks=(float, 2))


def rows() -> np.ndarray:
    """Three records with different values in every field."""
    table = np.zeros(3, KIND)
    table["credit_micro"] = [1, -2, 2**62]
    table["mean_s"] = [0.5, -0.25, 1e300]
    table["heap"] = np.arange(12).reshape(3, 4)
    table["marks"] = np.arange(6).reshape(3, 2) + 0.5
    return table


@rule
def earn(table, amount):
    """Pay every record, count in its heap, and mark it."""
    for i in range(len(table)):
        record = table[i]
        record.credit_micro += amount
        record.heap[i] += 1
        record.marks[0] = record.mean_s


def test_a_layout_has_64_bit_numbers_in_order() -> None:
    assert KIND.names == ("credit_micro", "mean_s", "heap", "marks")
    assert [KIND[name].base for name in KIND.names] == [np.int64, np.float64, np.int64, np.float64]
    assert KIND["heap"].shape == (4,) and KIND.itemsize == 8 * (1 + 1 + 4 + 2)


def test_records_start_at_zero_and_share_nothing() -> None:
    table = records(KIND, 2)
    assert to_array(table, KIND).tobytes() == np.zeros(2, KIND).tobytes()
    earn(table, 5)
    assert to_array(table, KIND)["heap"].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_records_survive_the_way_to_an_array_and_back() -> None:
    table = records(KIND, 3)
    fill(table, rows())
    assert to_array(table, KIND).tobytes() == rows().tobytes()
    earn(table, 10)
    expected = rows()
    expected["credit_micro"] += 10
    expected["heap"] += np.eye(3, 4, dtype=np.int64)
    expected["marks"][:, 0] = expected["mean_s"]
    assert to_array(table, KIND).tobytes() == expected.tobytes()


def test_an_array_of_records_is_a_copy() -> None:
    table = records(KIND, 3)
    to_array(table, KIND)["credit_micro"] = 7
    assert to_array(table, KIND)["credit_micro"].tolist() == [0, 0, 0]


def test_fill_refuses_another_number_of_rows() -> None:
    with pytest.raises(ValueError, match="5 records cannot take 1 rows"):
        fill(records(KIND, 5), rows()[:1])


def test_a_plain_record_has_its_fields_and_no_others() -> None:
    record = record_class(KIND)()
    with pytest.raises(AttributeError):
        record.debit = 1
    assert (record.credit_micro, record.mean_s, record.heap) == (0, 0.0, [0, 0, 0, 0])


def test_a_fraction_in_an_integer_field_of_a_plain_record_is_refused() -> None:
    """Compiled rules would have cut it off, so the modes would part in silence."""
    for name, value in (("credit_micro", 1.5), ("heap", [0, 0, 0.5, 0])):
        record = record_class(KIND)()
        setattr(record, name, value)
        with pytest.raises(TypeError, match=f"{name}: an integer field holds a fraction"):
            to_array([record], KIND)


def test_this_run_is_in_the_mode_that_was_asked_for() -> None:
    assert (os.environ.get("RULES", "compiled") == "compiled") == COMPILED
    assert hasattr(earn, "py_func") == COMPILED


def test_the_same_rule_gives_the_same_bytes_in_both_modes() -> None:
    program = (
        "import sys; from tests.market import test_rule as t\n"
        "table = t.records(t.KIND, 3); t.fill(table, t.rows()); t.earn(table, 3)\n"
        "sys.stdout.buffer.write(t.to_array(table, t.KIND).tobytes())"
    )
    outputs = [_python(program, mode).stdout for mode in room.MODES]
    assert outputs[0] == outputs[1] and len(outputs[0]) == 3 * KIND.itemsize


def test_an_unknown_mode_is_refused_by_name() -> None:
    run = _python("import market.rule", "nonsense", check=False)
    assert run.returncode != 0
    assert b"environment variable RULES: must be one of compiled, python, got 'nonsense'" in run.stderr


@pytest.mark.parametrize("change", ["edit", "add", "rename"])
def test_the_cache_key_follows_the_text_of_every_rule_file(tmp_path: Path, change: str) -> None:
    for name in ("a", "b"):
        shutil.copytree(ROOT / "market", tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    same, other = tmp_path / "a", tmp_path / "b"
    assert room._digest(same) == room._digest(other)
    room._digest.cache_clear()
    for path in sorted(other.glob("*.py")):
        text = path.read_bytes()
        if change == "edit":
            path.write_bytes(text + b"\n")
        elif change == "add":
            (other / f"{path.stem}_more.py").write_bytes(b"")
        else:
            path.rename(other / f"{path.stem}_more.py")
        assert room._digest(same) != room._digest(other), path.name
        room._digest.cache_clear()
        (other / f"{path.stem}_more.py").unlink(missing_ok=True)
        path.write_bytes(text)
    assert room._digest(same) == room._digest(other)
    room._digest.cache_clear()


def test_the_cache_stands_in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    folder = Path(room._cache_folder(Path(__file__)))
    assert folder.parent == tmp_path / "wwwserve_rules"
    assert folder != Path(room._cache_folder(ROOT / "market" / "rule.py"))


def _python(program: str, mode: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a fresh process with RULES=`mode`."""
    environment = {**os.environ, "RULES": mode}
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=check, capture_output=True)
