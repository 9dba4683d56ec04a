"""docs/security.md names tests: each of them is there, and what it shows of a file of keys is a file of keys."""

import ast
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from live_bridge.peers.users import User, Users

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TESTS = {
    node.name
    for path in (ROOT / "tests" / "live_bridge").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef)
}
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_page_names_is_there(name: str) -> None:
    assert name in TESTS


def test_every_row_of_a_table_has_its_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| it cannot")]
    assert len(rows) > 20 and all(re.search(r"`test_\w+`", row) for row in rows)


def test_the_key_that_the_page_makes_opens_the_door(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    script = example.replace("python -c", f"{sys.executable} -c") + 'printf %s "$key"'
    key = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, check=True).stdout
    found = Users(tmp_path / "users.keys").admit([(b"authorization", b"Bearer " + key)], 0.0, 1_790_000_000.0)
    assert isinstance(found, User) and found.name == "alice" and found.digest == sha256(key).digest()
