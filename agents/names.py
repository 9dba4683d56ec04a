"""What policies are called: those that have a name and no file, fixed levels, and folders on disk.

Says who a name stands for without loading it, so that a slip in a name is told at once. A serving node imports it.
"""

import difflib
from pathlib import Path
from typing import Literal, NamedTuple

from agents.card import CARD_FILE, PolicyError
from market.action import ACTION_NVEC, LEVELS

FOLDER = "policies_trained"
HOUSE = Path(__file__).resolve().parents[1]
"""Where the shipped policies are, for programs that run elsewhere."""
Brain = Literal["policy", "paper"]
Dispatch = Literal["market", "paper_central", "central"]
KINDS: dict[str, tuple[Brain, Dispatch]] = {
    "single": ("policy", "market"),
    "paper": ("paper", "market"),
    "paper_central": ("policy", "paper_central"),
    "central": ("policy", "central"),
    "uniform": ("policy", "market"),
}
"""Policies that have a name and no folder."""


class Named(NamedTuple):
    """Who a name stands for."""

    brain: Brain
    dispatch: Dispatch
    levels: tuple[int, ...] | None  # of fixed:ACCEPT-FORWARD-COMMIT
    folder: Path | None  # of a trained policy


def find(text: str) -> Named:
    """Say who a name stands for; the names are those of agents.policy.load.

    errors   PolicyError for a name that is not known
    """
    if text in KINDS:
        return Named(*KINDS[text], None, None)
    if text.startswith("fixed"):
        return Named("policy", "market", _levels(text), None)
    folder = folder_of(text)
    if folder is None:
        raise PolicyError(f"policies: there is no {text}; {_did_you_mean(text)}")
    return Named("policy", "market", None, folder)


def folder_of(name: str) -> Path | None:
    """Find the folder of a policy: by its path, in FOLDER here, or among those that are shipped; None for a policy without one."""
    if name in KINDS or name.startswith("fixed"):
        return None
    places = (Path(name), Path(FOLDER) / name, HOUSE / name, HOUSE / FOLDER / name)
    return next((place for place in places if place.is_dir()), None)


def _levels(text: str) -> tuple[int, ...]:
    """Read fixed:ACCEPT,FORWARD,COMMIT, or with dashes, which lists of names leave whole."""
    parts = text.removeprefix("fixed:").replace("-", ",").split(",")
    whole = text.startswith("fixed:") and len(parts) == len(ACTION_NVEC) and all(part.strip().isdecimal() for part in parts)
    if not whole or any(int(part) >= LEVELS for part in parts):
        raise PolicyError(
            f"policies: {text} must be fixed:ACCEPT-FORWARD-COMMIT with levels in [0, {LEVELS - 1}], such as fixed:3-2-2"
        )
    return tuple(int(part) for part in parts)


def _did_you_mean(text: str) -> str:
    """Name the closest policy, or all."""
    trained = [path.parent.name for path in sorted(Path(FOLDER).glob(f"[!.]*/{CARD_FILE}"))]
    known = [*KINDS, "fixed:3-2-2", *trained]
    close = difflib.get_close_matches(Path(text).name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}, or give a folder"
