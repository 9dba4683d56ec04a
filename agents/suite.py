"""Plays the experiments of a suite and writes what is published of them: `python -m agents.evaluate --suite paper`.

An entrant of an experiment is one cell of work: all seeds of one policy under one config. A cell that has been played lies on disk
under a digest of all that its numbers depend on, so that an interrupted suite goes on where it stopped and gives the same bytes.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

from agents import protocol
from market.action import LEVELS
from settings import Range, SettingsError, Slip, did_you_mean, plain, read

ROOT = Path(__file__).resolve().parents[1]
ABOUT = "Play every experiment of a suite and write its figures, with intervals, as JSON; tables and pictures: make results."
EXAMPLES = {
    "paper": "every experiment of WWW.Serve",
    "beyond": "what the paper does not ask: regions, traces, free riders, Sybils, 3 to 512 providers, ...",
    "full only=[setting-2,sybils]": "some experiments of all suites",
    "paper seeds=4 output=/tmp/quick": "a quick look that is never published",
}
WORLD = ("market/*.py", "envs/wwwserve/*.py", "envs/wwwserve/**/*.csv", "conf/serving/*.yaml")
"""The code and tables of the market, which every number depends on."""
SOURCES = (
    *WORLD,
    "agents/card.py",
    "agents/evaluate.py",
    "agents/metrics.py",
    "agents/names.py",
    "agents/policy.py",
    "agents/protocol.py",
    "agents/seats.py",
)
"""What a number depends on beside config and policy."""
MANY = "*"
"""In a policy's name: one entrant for each level."""


@dataclass(frozen=True)
class Entrant:
    """Who steers the providers, and what is different for them."""

    policy: str  # as in python -m agents.evaluate policies=[...]
    visitors: dict[str, list[int]]  # policy -> the seats that it steers instead
    set: list[str]  # overrides beside those of the experiment


@dataclass(frozen=True)
class Experiment:
    """Entrants that are compared."""

    title: str
    set: list[str]  # overrides of every entrant: env=..., market.KEY=...
    seeds: Annotated[int, Range(2, 100_000, "seeds")] | None  # null = the protocol's
    policies: list[str]  # entrants that are one policy, under its own name; fixed:*-*-2: one of each level, told of in brief
    entrants: dict[str, Entrant]  # others
    groups: dict[str, list[int]]  # label -> providers that are told of together
    reported: dict[str, dict[str, float]]  # what the paper says: entrant or group -> metric -> value


@dataclass(frozen=True)
class Suite:
    """One file of conf/suite."""

    about: str
    include: list[str]  # suites whose experiments are played too
    experiments: dict[str, Experiment]


@dataclass(frozen=True)
class Settings:
    """conf/suite.yaml, beside the group."""

    only: list[str]
    seeds: Annotated[int, Range(2, 100_000, "seeds")] | None
    output: str
    cells: str
    workers: Annotated[int, Range(1, 1024, "processes")] | None


@dataclass(frozen=True)
class Cell:
    """All seeds of one entrant: what a worker needs to play it."""

    suite: str
    experiment: str
    entrant: str
    policy: str
    visitors: dict[str, list[int]]
    words: tuple[str, ...]  # overrides
    seeds: int
    weight: int  # agent-steps
    path: Path


def main(words: Sequence[str]) -> int:
    """Run `--suite NAME KEY=VALUE ...`; returns the exit status."""
    from compose import compose, settings_text

    if not words or {"-h", "--help"} & set(words):
        print(settings_text("python -m agents.evaluate --suite NAME", ABOUT, EXAMPLES, "suite"), end="")
        return 0
    try:
        composed = compose([f"suite={words[0]}", *words[1:]], "suite")
        values = plain(composed.values, "conf/suite.yaml")
        try:
            settings = read(Settings, {key: value for key, value in values.items() if key != "suite"}, "conf/suite.yaml")
        except SettingsError as error:
            raise composed.blame(error.slips) from None
        run(_choose(load(words[0]), settings.only), settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def load(name: str) -> dict[str, tuple[str, Experiment]]:
    """Read conf/suite/NAME.yaml: experiment -> (its suite, what it is), those of included suites first.

    errors   SettingsError
    """
    from compose import compose

    place = f"conf/suite/{name}.yaml"
    mine = read(Suite, plain(compose([f"suite={name}"], "suite").values, place)["suite"], place)
    found: dict[str, tuple[str, Experiment]] = {}
    for other in mine.include:
        found |= load(other)
    twice = sorted(set(found) & set(mine.experiments))
    if twice:
        raise SettingsError(Slip(place, f"experiments.{twice[0]}", "has the name of one of an included suite; give it another"))
    return found | {key: (name, experiment) for key, experiment in mine.experiments.items()}


def _choose(experiments: Mapping[str, tuple[str, Experiment]], only: Sequence[str]) -> dict[str, tuple[str, Experiment]]:
    unknown = [name for name in only if name not in experiments]
    if unknown:
        raise SettingsError(Slip("command line", "only", f"names {unknown[0]}; {did_you_mean(unknown[0], experiments)}"))
    return {name: one for name, one in experiments.items() if not only or name in only}


def run(experiments: Mapping[str, tuple[str, Experiment]], settings: Settings) -> None:
    """Play what has not been played, then write each experiment's file of results.

    errors   SettingsError, before anything is played, for an entrant that cannot be
    """
    from agents.progress import CountingProgress

    cells = {name: plan(suite, name, experiment, settings) for name, (suite, experiment) in experiments.items()}
    todo = {cell.path: cell for entrants in cells.values() for cell in entrants if not cell.path.is_file()}
    with CountingProgress("suite", sum(cell.weight for cell in todo.values())) as progress:
        for cell in _play_all(list(todo.values()), settings.workers or min(os.cpu_count() or 1, 8)):
            progress.advance(cell.weight)
            print(f"played {cell.suite}/{cell.experiment}: {cell.entrant}", file=sys.stderr, flush=True)
    for name, (suite, experiment) in experiments.items():
        print(f"wrote {publish(suite, name, experiment, cells[name], Path(settings.output))}")


def plan(suite: str, name: str, experiment: Experiment, settings: Settings) -> list[Cell]:
    """Check every entrant of an experiment, and give it its place on disk.

    errors   SettingsError naming suite, experiment, entrant and slip
    """
    seeds = settings.seeds or experiment.seeds or protocol.SEEDS
    code = digest_of(SOURCES)
    return [
        _cell(
            code,
            Path(settings.cells),
            Cell(suite, name, key, one.policy, one.visitors, (*experiment.set, *one.set), seeds, 0, Path()),
        )
        for key, one in entrants(experiment).items()
    ]


def entrants(experiment: Experiment) -> dict[str, Entrant]:
    """Name all entrants of an experiment, with one for each level where a policy has a `*`."""
    names = [name for policy in experiment.policies for name in _levels(policy)]
    return {name: Entrant(name, {}, []) for name in names} | experiment.entrants


def _levels(policy: str) -> list[str]:
    """Put each level of an action in the place of each `*`."""
    parts = policy.split(MANY)
    filled = product(map(str, range(LEVELS)), repeat=len(parts) - 1)
    return ["".join(chain.from_iterable(zip(parts, (*levels, ""), strict=True))) for levels in filled]


def _cell(code: str, folder: Path, cell: Cell) -> Cell:
    """Check a cell and name its file by all that its numbers depend on."""
    from agents.card import PolicyError

    place, key = f"conf/suite/{cell.suite}.yaml", f"experiments.{cell.experiment}.{cell.entrant}"
    try:
        values, scenario, _ = _scene(cell.words)
        entrant(cell, scenario.population)
    except SettingsError as error:
        raise SettingsError(*(Slip(place, f"{key}.set", f"{slip.key} {slip.rule}") for slip in error.slips)) from error
    except PolicyError as error:
        raise SettingsError(Slip(place, key, str(error))) from error
    depends = {name: value for name, value in asdict(cell).items() if name in ("policy", "visitors", "seeds")}
    depends |= {"config": {group: values[group] for group in ("env", "market")}, "code": code, "policies": _digests(cell)}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:20]
    weight = scenario.steps * scenario.population * cell.seeds
    return replace(cell, weight=weight, path=folder / f"{cell.experiment}.{cell.entrant}.{digest}.npz")


@lru_cache(maxsize=16)
def _scene(words: tuple[str, ...]) -> Any:
    """Compose a scene once for the many cells that are played in it; no caller changes what it gets."""
    from agents.evaluate import scene

    return scene(words)


def entrant(cell: Cell, providers: int) -> Any:
    """Load who plays a cell, under the entrant's name.

    errors   PolicyError
    """
    from agents.policy import load
    from agents.seats import seat

    visitors = {name: load(name, seed=protocol.FIRST_SEED + 1 + i) for i, name in enumerate(cell.visitors)}
    seats = {place: visitors[name] for name, places in cell.visitors.items() for place in places}
    return replace(seat(load(cell.policy, seed=protocol.FIRST_SEED), seats, providers), name=cell.entrant)


def _digests(cell: Cell) -> list[str]:
    """Digest the trained policies of a cell."""
    from agents.card import POLICY_FILE
    from agents.names import folder_of

    folders = [folder_of(name) for name in (cell.policy, *cell.visitors)]
    return [hashlib.sha256((folder / POLICY_FILE).read_bytes()).hexdigest() for folder in folders if folder]


def digest_of(sources: Sequence[str]) -> str:
    """Digest the files that numbers depend on, given as patterns below the repository's root."""
    digest = hashlib.sha256()
    for pattern in sources:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _play_all(cells: Sequence[Cell], workers: int) -> Any:
    """Play cells in processes, the longest first; gives each as it ends."""
    if not cells:
        return
    waiting = sorted(cells, key=lambda cell: -cell.weight)
    with ProcessPoolExecutor(min(workers, len(cells)), mp_context=get_context("spawn")) as pool:
        open_: dict[Future[None], Cell] = {pool.submit(play_cell, cell): cell for cell in waiting}
        try:
            while open_:
                for done in wait(open_, return_when=FIRST_COMPLETED).done:
                    done.result()
                    yield open_.pop(done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def play_cell(cell: Cell) -> None:
    """Play one cell and keep its round."""
    from agents import rounds
    from agents.evaluate import play

    _, scenario, make = _scene(cell.words)
    who = entrant(cell, scenario.population)
    rounds.write(cell.path, play(make(networks=cell.seeds, seed=protocol.FIRST_SEED, dispatch=who.dispatch), who))


def publish(suite: str, name: str, experiment: Experiment, cells: Sequence[Cell], output: Path) -> Path:
    """Write the file of results of an experiment whose cells have all been played."""
    from agents import findings, rounds
    from agents.evaluate import assemble

    evaluation = assemble([rounds.read(cell.path) for cell in cells], protocol.FIRST_SEED)
    brief = {name for policy in experiment.policies if MANY in policy for name in _levels(policy)}
    told = findings.summarise(evaluation, experiment.groups, brief)
    for cell in cells:
        told["entrants"][cell.entrant] |= {"policy": cell.policy, "visitors": cell.visitors, "set": list(cell.words)}
    facts = {"suite": suite, "experiment": name, "title": experiment.title, "reported": experiment.reported}
    command = f"python -m agents.evaluate --suite {suite} only=[{name}]"
    path = output / suite / f"{name}.json"
    findings.write(path, {**facts, "command": command, **told})
    return path
