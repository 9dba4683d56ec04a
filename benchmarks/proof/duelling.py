"""The part `duels` as a command: engines, the contests, and the file that they are written to."""

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import yaml

from agents.provenance import source
from benchmarks.measure import ROOT, report
from benchmarks.proof import engines
from benchmarks.proof.duels import ROLES, Contest, contest
from benchmarks.proof.kept import Kept, write
from benchmarks.proof.playing import KEEP, RESULTS
from benchmarks.proof.terminal import say, unless_stopped
from live_bridge.http.client import Client
from settings import SettingsError, Slip

BITS = 3
SECONDS = 540.0
LETTERS_SHARE = 0.25
"""Of the time, in which the judge is asked for a letter instead of what it finds likelier."""
SERVING = ("--max-num-seqs", "8", "--max-model-len", "2048", "--block-size", "32")
HONEST = engines.Model(("smollm2",), SERVING, core=0)
LEMON = engines.Model(("smollm2", "--bits", str(BITS)), SERVING, core=1)
JUDGE = engines.Model(("smollm2",), SERVING, core=0)
AT_ONCE, MAX_TOKENS, TEMPERATURE = 4, 48, 0.7
PROFILE = "cpu_tiny"
QUALITY = {"honest": 1.0, "lemon": -1.0}
"""Of emulated engines: log-odds."""
Z = 1.959964
"""Of a 95 % interval."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this part takes."""
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help="of asking, both ways of judging (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/results/live/duels.json; quick: in --keep")
    parser.add_argument("--quick", action="store_true", help="emulated engines of two qualities, for some seconds")


def contests(args: argparse.Namespace) -> list[Contest]:
    """Read the command line.

    errors   SettingsError
    """
    if not args.seconds > 0.0:
        raise SettingsError(Slip("command line", "--seconds", f"must be > 0, got {args.seconds:g}"))
    if args.quick:
        return [Contest("letters", "letters", min(args.seconds, 6.0), AT_ONCE, MAX_TOKENS, TEMPERATURE, 5.0)]
    seconds = {"likelihood": (1.0 - LETTERS_SHARE) * args.seconds, "letters": LETTERS_SHARE * args.seconds}
    return [Contest(by, by, part, AT_ONCE, MAX_TOKENS, TEMPERATURE, 1.0) for by, part in seconds.items()]


def run(args: argparse.Namespace, out: Path | None) -> int:
    """Hold all contests, sum up, write."""
    import uvloop

    held = contests(args)
    folder = args.keep or KEEP / ("quick-duels" if args.quick else "duels")
    settings = {"contests": [one._asdict() for one in held], "lemon": f"{BITS} bits a weight", "serving": list(SERVING)}
    kept = Kept(folder, settings)
    records, engine = uvloop.run(unless_stopped(_held(held, kept, folder, args)))
    found: dict[str, Any] = {"part": "duels", "command": "python -m benchmarks.proof duels"}
    found |= {**engine, **settings}
    found |= {"summary": {record["contest"]["name"]: summarise(record) for record in records}, "records": records}
    file = out or (folder / "duels.json" if args.quick else RESULTS / "duels.json")
    write(file, found)
    print(f"wrote {file}")
    report("proof duels", {**engine, **found["summary"]})
    return 0


async def _held(
    held: Sequence[Contest], kept: Kept, folder: Path, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Start engines where any contest is left to be held, and hold it."""
    left = [one for one in held if kept.find(one.name) is None]
    engine = kept.find("engine") or {"engine": "emulated", "source": source()._asdict()}
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proof_")))
        backends, profiles = _emulated(home)
        if left and not args.quick:
            client = Client()
            stack.push_async_callback(client.close)
            models = [HONEST, LEMON, JUDGE]
            honest, lemon, judge = await stack.enter_async_context(engines.serving(models, args.interpreter, folder, client, say))
            engine |= {"engine": await engines.version(client, honest)}
            # the users' node executes nothing: it may share the judge's engine
            backends = [{"kind": "vllm", "url": url, "stale_s": 30} for url in (judge, honest, lemon, judge)]
            profiles = [PROFILE] * len(ROLES)
        kept.put("engine", engine)
        for one in left:
            say(f"{one.name}: {one.seconds:g} s of duels")
            record = await contest(one, backends, profiles, home / one.name, say)
            kept.put(one.name, record)
            say(f"{one.name}: {record['duels']}, won by {_wins(record)}")
    found = [kept.find(one.name) for one in held]
    return [record for record in found if record is not None], engine


def _emulated(home: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Settings of nodes with emulated engines, of which one makes worse answers."""
    values = yaml.safe_load((ROOT / "conf" / "serving" / f"{PROFILE}.yaml").read_text(encoding="utf-8"))
    profiles = []
    for role in ROLES:
        file = home / f"{role}.yaml"
        file.write_text(yaml.safe_dump(values | {"quality": QUALITY.get(role, 0.0)}), encoding="utf-8")
        profiles.append(str(file))
    return [{"kind": "emulated", "seed": number} for number in range(len(ROLES))], profiles


def summarise(record: Mapping[str, Any]) -> dict[str, Any]:
    """Sum up a contest: the honest node's share of the duels that had a winner, with Wilson's interval, and what moved."""
    won, lost = _wins(record)["honest"], _wins(record)["lemon"]
    gained = {role: round(part["wealth_after"] - part["wealth_before"], 3) for role, part in record["roles"].items()}
    return {
        "duels": sum(record["duels"].values()),
        "decided": won + lost,
        "undecided": record["duels"]["undecided"],
        "called_off": record["duels"]["called_off"],
        "honest_wins": won,
        "honest_share": wilson(won, won + lost) if won + lost else None,
        "credits_gained": gained,
        "money_difference": record["money_difference"],
    }


def _wins(record: Mapping[str, Any]) -> dict[str, int]:
    return {role: record["roles"][role]["duels_won"] for role in ("honest", "lemon")}


def wilson(wins: int, count: int) -> list[float]:
    """Give a share and its 95 % interval by Wilson's score.

    source   E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927
    """
    share = wins / count
    middle = (share + Z * Z / (2 * count)) / (1.0 + Z * Z / count)
    half = Z * math.sqrt(share * (1.0 - share) / count + Z * Z / (4 * count * count)) / (1.0 + Z * Z / count)
    return [round(value, 5) for value in (share, max(middle - half, 0.0), min(middle + half, 1.0))]
