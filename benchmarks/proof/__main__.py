"""The live proof: `python -m benchmarks.proof plays|duels [--quick]`; `--help` has examples.

plays   two real vLLM servers on CPUs, a node before each, most users at one of them: what they get under each policy
duels   real SmolLM2 engines, one of them a coarse copy: who wins when both answer the same question
engines the engines of `plays` alone, to be calibrated
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.proof import duelling, engines, playing
from live_bridge.backends.launch import LaunchError
from live_bridge.backends.metrics import MetricsError
from live_bridge.backends.probe import ProbeError
from live_bridge.http.message import HttpError
from live_bridge.slip import Slipped
from settings import SettingsError

EXAMPLES = """examples:
  python -m benchmarks.proof plays                        27 plays on real engines, half an hour; Ctrl-C and again goes on
  python -m benchmarks.proof plays --loads 1.2 --repetitions 2 --keep runs/proof/short --out short.json
  python -m benchmarks.proof plays --quick                emulated engines, fast: no vLLM, and nothing under benchmarks/results
  python -m benchmarks.proof duels                        9 minutes of duels between SmolLM2 and its 3-bit copy
  python -m benchmarks.results                            then: tables and pictures of docs/results.md
"""


def parser() -> argparse.ArgumentParser:
    """Say what the command takes."""
    out = argparse.ArgumentParser(
        prog="python -m benchmarks.proof",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = out.add_subparsers(dest="part", required=True)
    playing.add_arguments(parts.add_parser("plays", help="policies before the same users"))
    duelling.add_arguments(parts.add_parser("duels", help="an honest provider against a lemon"))
    parts.add_parser("engines", help="the engines of plays, until Ctrl-C").set_defaults(out=None)
    for part in parts.choices.values():
        part.add_argument(
            "--interpreter", type=Path, default=engines.INTERPRETER, help="a Python that has vLLM (default: %(default)s)"
        )
        part.add_argument("--keep", type=Path, metavar="FOLDER", help="for models, logs and what is done (default: in runs/proof)")
    return out


def main(words: list[str] | None = None) -> int:
    """Run a part; returns the exit status."""
    args = parser().parse_args(words)
    run: dict[str, Callable[[argparse.Namespace, Path | None], int]] = {
        "plays": playing.run,
        "duels": duelling.run,
        "engines": playing.serve,
    }
    try:
        return run[args.part](args, args.out)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (Slipped, LaunchError, ProbeError, MetricsError, HttpError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: what is done is kept, and the same command goes on from there\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
