"""Says which source a run or a policy was made with."""

import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Source(NamedTuple):
    """The commit of the code, and whether files differ from it."""

    commit: str | None  # None when the code does not lie in its own git repository (installed from a wheel)
    dirty: bool


def source(root: Path = ROOT) -> Source:
    """Ask git for the state of the code in `root`."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return Source(None, dirty=False)
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    return Source(commit or None, dirty=bool(_git(root, "status", "--porcelain", "--untracked-files=no")))


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):  # no git here: then there is no commit to name
        return None
    return done.stdout.strip() if done.returncode == 0 else None
