"""The policies that are shipped: lists them, and checks that each is whole, of this build, and as good as its card says.

python -m agents.zoo list               every policy, what it was trained in and how good its card says it is
python -m agents.zoo verify [NAME ...]  hash, versions, and the episodes of its card again, whose score must lie in its interval
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agents.card import CARD_FILE, PolicyError, read_card
from agents.names import FOLDER, HOUSE
from agents.policy import learned
from agents.statistics import Estimate, estimate

METRIC = "slo_attainment"


class Entry(NamedTuple):
    """A policy of the zoo."""

    folder: Path
    card: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the policy."""
        return self.folder.name

    @property
    def home(self) -> str:
        """Name of the scenario that it was trained in."""
        return str(self.card["config"]["env"]["name"])

    @property
    def score(self) -> Estimate | None:
        """What the card says of its attainment at home."""
        found = self.card["scores"].get(self.home, {}).get(METRIC, {}).get(self.name)
        return Estimate(*found) if found else None


def entries(folder: Path) -> list[Entry]:
    """Read the cards of all policies in a folder.

    errors   PolicyError for a card that is damaged or of another build
    """
    return [Entry(path.parent, read_card(path.parent)) for path in sorted(folder.glob(f"[!.]*/{CARD_FILE}"))]


def verify(entry: Entry) -> str:
    """Load a policy, play the episodes of its card at home, and compare.

    returns   what was found, in a line
    errors    PolicyError when the file is damaged or of another layout, or when the score is not that of the card
    """
    from agents.evaluate import play, scene

    who = learned(entry.folder)
    if entry.score is None:
        raise PolicyError(f"{entry.folder / CARD_FILE}: has no {METRIC} in {entry.home}; train it again, which evaluates it")
    first_seed, seeds = entry.card["seeds"]["evaluation"]
    _, _, make = scene([f"env={entry.home}"])
    found = estimate(play(make(networks=seeds, seed=first_seed, dispatch="market"), who).played.metrics[METRIC])
    told = f"{METRIC} {_shown(found)} over {seeds} episodes, the card says {_shown(entry.score)}"
    if not entry.score.low <= found.point <= entry.score.high:
        raise PolicyError(
            f"{entry.folder}: {told}: not the policy, scenario or market of its card; train it again: {entry.card['reproduce']}"
        )
    return told


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 1 when a policy is not as its card says, 2 for a slip."""
    command, names = (words[0], words[1:]) if words else ("", [])
    if command not in ("list", "verify") or {"-h", "--help"} & set(words) or (command == "list" and names):
        print(__doc__, end="")
        return 0 if {"-h", "--help"} & set(words) else 2
    folder = Path(FOLDER) if Path(FOLDER).is_dir() else HOUSE / FOLDER
    try:
        found = entries(folder)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 1
    unknown = sorted(set(names) - {entry.name for entry in found})
    if unknown:
        print(f"zoo: {folder} has no {unknown[0]}; choose from {', '.join(entry.name for entry in found)}", file=sys.stderr)
        return 2
    return _list(found) if command == "list" else _verify([entry for entry in found if not names or entry.name in names])


def _list(found: Sequence[Entry]) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table("policy", "trained in", "agent-steps", f"{METRIC} there", "made by")
    for entry in found:
        steps = f"{entry.card['training']['agent_steps']:,}"
        shown.add_row(entry.name, entry.home, steps, _shown(entry.score), escape(str(entry.card["reproduce"])))
    Console(width=None if sys.stdout.isatty() else 150).print(shown)
    return 0


def _verify(chosen: Sequence[Entry]) -> int:
    failed = False
    for entry in chosen:
        try:
            print(f"{entry.name}: {verify(entry)}", flush=True)
        except PolicyError as error:
            failed = True
            print(error, file=sys.stderr)
    return int(failed)


def _shown(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.point:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
