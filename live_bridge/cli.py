"""The command `live_bridge`: one word a job; each job's code is loaded when it is asked for."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn


class Job(NamedTuple):
    """A word of the command line."""

    module: str  # has add_arguments(parser) and run(args) -> exit status
    meaning: str
    examples: tuple[str, ...]


EXTRA = {"aiohttp", "asyncpg", "httptools", "nacl", "orjson", "prometheus_client", "uvloop"}
"""What pyproject.toml's extra `live` installs."""
JOBS = {
    "serve": Job(
        "live_bridge.serve",
        "run one node: a provider with its engine, a policy that decides, and peers",
        (
            "live_bridge serve --policy policies_trained/ppo_wwwserve --backend http://127.0.0.1:8000",
            "live_bridge serve --join http://10.0.0.7:9000 --listen 10.0.0.8:9000 peers.allow=[10.0.0.0/24]",
            "live_bridge serve --backend emulated --profile l4_qwen3_8b speed=20",
        ),
    ),
    "up": Job(
        "live_bridge.up",
        "a whole market on this machine, with users that ask: the first thing to try",
        ("live_bridge up", "live_bridge up --nodes 4 --scenario paper-2 --speed 20 --duration 60"),
    ),
    "check": Job(
        "live_bridge.check",
        "the same demand through the simulator and through real nodes: how far do they differ?",
        ("live_bridge check --scenario paper-2 --policies paper,policies_trained/ppo_wwwserve",),
    ),
    "calibrate": Job(
        "live_bridge.backends.calibrate",
        "measure what an engine costs and write its serving profile",
        ("live_bridge calibrate http://127.0.0.1:8000 --out my_gpu.yaml",),
    ),
    "replay": Job(
        "live_bridge.replay",
        "run a node's journal through the rules again: same commands, bit for bit",
        (
            "live_bridge replay .live_bridge/journal.jsonl",
            "live_bridge replay .live_bridge/journal.jsonl --policy policies_trained/ppo_wwwserve",
        ),
    ),
    "ledger": Job(
        "live_bridge.ledger.cli",
        "serve a ledger alone, audit one, or list its accounts",
        ("live_bridge ledger audit .live_bridge/ledger.sqlite", "live_bridge ledger serve --listen 127.0.0.1:9100"),
    ),
    "emulate": Job(
        "live_bridge.backends.emulate",
        "an OpenAI-compatible engine without a GPU, as slow as a real one",
        ("live_bridge emulate --profile l4_qwen3_8b --port 8000",),
    ),
}


class Parser(argparse.ArgumentParser):
    """Says a slip in one line."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` says more\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. A slip of the user's is one line and status 2, not a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in JOBS:
        return _no_job(words)
    job = JOBS[words[0]]
    try:
        module = importlib.import_module(job.module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        sys.stderr.write(f"live_bridge {words[0]}: needs {error.name}; pip install -e '.[live]' (or make up)\n")
        return 2
    parser = Parser(
        prog=f"live_bridge {words[0]}",
        description=job.meaning,
        epilog="examples:\n  " + "\n  ".join(job.examples) + _more(module),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    divided = parser._subparsers is not None  # which cannot be mixed
    args = parser.parse_args(words[1:]) if divided else parser.parse_intermixed_args(words[1:])
    try:
        return int(module.run(args))
    except _slips() as error:
        sys.stderr.write(f"live_bridge {words[0]}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _no_job(words: list[str]) -> int:
    """Show what there is."""
    if words and words[0] not in {"-h", "--help"}:
        from settings import did_you_mean

        sys.stderr.write(f"live_bridge: there is no {words[0]}; {did_you_mean(words[0], JOBS)}\n")
        return 2
    lines = ["usage: live_bridge JOB [...]; `live_bridge JOB --help` says more", ""]
    lines += [f"  {name:<10} {job.meaning}" for name, job in JOBS.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _more(module: object) -> str:
    """What a job adds to the end of its help."""
    more = getattr(module, "HELP", None)
    return f"\n\n{more()}" if more else ""


def _slips() -> tuple[type[Exception], ...]:
    """Errors whose text is for the user: it names place, rule, value and way out."""
    from agents.card import PolicyError
    from live_bridge.identity import IdentityError
    from live_bridge.peers.addresses import AddressError
    from live_bridge.peers.users import UsersError
    from live_bridge.slip import Slipped
    from settings import SettingsError

    return SettingsError, PolicyError, IdentityError, AddressError, UsersError, Slipped
