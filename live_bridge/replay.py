"""`live_bridge replay`: a node's journal through the rules again. Same events, same commands, same beliefs, bit for bit."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from live_bridge.brain import Brain, Setup
from live_bridge.journal import read
from live_bridge.pilot import ask, fenced
from live_bridge.slip import Slipped
from market.profile import Profile
from market.terms import Terms
from settings import read as read_settings

FORMAT = 2


class Replayed(NamedTuple):
    """What a replay found."""

    events: int
    decisions: int  # asked of the policy again and found the same
    different: str | None  # the first line that differs, and how
    brain: Brain


def header(
    setup: Setup, terms: dict[str, Any], profile: dict[str, Any], policy: str, control_s: float, seed: int
) -> dict[str, Any]:
    """The journal's first line: all that a mind is made of, and how its policy was asked."""
    return {
        "format": FORMAT,
        **setup._asdict(),
        "terms": terms,
        "profile": profile,
        "policy": policy,
        "control_s": control_s,
        "seed": seed,
    }


def setup_of(head: dict[str, Any], place: str) -> Setup:
    """Make a mind's setup of a journal's first line.

    errors   Slipped, SettingsError
    """
    if head.get("format") != FORMAT:
        raise Slipped(f"{place}: has journal format {head.get('format')!r}, this build reads {FORMAT}")
    values = {name: head[name] for name in Setup._fields}
    values["terms"] = read_settings(Terms, head["terms"], place)
    values["profile"] = read_settings(Profile, head["profile"], place)
    return Setup(**values)


class Witness:
    """A policy that is asked again what it was asked then."""

    def __init__(self, name: str, control_s: float, seed: int) -> None:
        """Take the policy's name or folder, the market seconds between decisions, and the seed of its draws.

        errors   PolicyError
        """
        self._as_then = name, control_s, seed
        self._loads = 0
        self._policy = fenced(*self._as_then).policy
        self._chosen: list[int] | None = None

    def asked(self, loads: int, brain: Brain) -> None:
        """Ask; a node that has loaded its policy anew has begun its draws and its memory anew."""
        if loads != self._loads:
            self._loads, self._policy = loads, fenced(*self._as_then).policy
        action = ask(self._policy, *brain.seen).action
        self._chosen = None if action is None else list(action)

    def differs(self, action: list[int]) -> str | None:
        """Compare with what was decided then."""
        return None if self._chosen == action else f"the policy chose {action}, now {self._chosen or 'nothing'}"


def replay(lines: Iterator[Any], place: str, policy: str | None = None) -> Replayed:
    """Run the lines of a journal through a new mind and compare.

    lines    first the header, then [event, commands]
    policy   also ask this policy again at each decision: it must choose what it chose then
    errors   Slipped, SettingsError, PolicyError
    """
    head = next(lines, None)
    if not isinstance(head, dict):
        raise Slipped(f"{place}: does not begin with a journal's header")
    brain = Brain(setup_of(head, place))
    witness = Witness(policy, head["control_s"], head["seed"]) if policy else None
    events = decisions = 0
    for number, (event, commands) in enumerate(lines, 2):
        found = brain.on(event)
        if found != commands:
            return Replayed(events, decisions, f"line {number}: {event[0]} led to {commands}, now {found}", brain)
        events += 1
        if witness is None:
            continue
        if event[0] == "asked":
            witness.asked(event[2], brain)
        elif event[0] == "decide":
            difference = witness.differs(event[2:])
            if difference:
                return Replayed(events, decisions, f"line {number}: {difference}", brain)
            decisions += 1
    return Replayed(events, decisions, None, brain)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words of the command line."""
    parser.add_argument("journal", type=Path, help="journal.jsonl in a node's home")
    parser.add_argument("--policy", metavar="POLICY", help="ask this policy again at each decision, too")


def run(args: argparse.Namespace) -> int:
    """Replay a journal; returns 1 when something differs."""
    if not args.journal.is_file():
        raise Slipped(f"{args.journal}: does not exist; a node writes journal.jsonl into its home")
    result = replay(read(args.journal), str(args.journal), args.policy)
    if result.different:
        sys.stdout.write(f"{args.journal}: differs after {result.events} events: {result.different}\n")
        return 1
    asked = f", {result.decisions} decisions asked again" if args.policy else ""
    sys.stdout.write(f"{args.journal}: {result.events} events, the same commands{asked}\n")
    return 0
