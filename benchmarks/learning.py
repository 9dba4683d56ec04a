"""Trainings compared, each from several seeds and judged by the protocol: `python -m benchmarks.learning NAME [KEY=VALUE ...]`.

conf/learning/NAME.yaml names the variants. A unit of work is one variant from one seed: a run of train.py in a process of its own,
one at a time, then the protocol's episodes. What a folder holds of the same settings and code is taken as it is, what it holds of
others is refused; a run that was stopped goes on from its checkpoint.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml

from agents import protocol, statistics, suite
from agents.scores import Array, rounded
from benchmarks.measure import child, report, spread
from settings import Range, SettingsError, Slip, did_you_mean, plain, read

ABOUT = "Train variants from several seeds each, evaluate them by the protocol, and keep their figures with intervals."
EXAMPLES = {
    "python -m benchmarks.learning social": "what a provider is rewarded for, from itself to all",
    "python -m benchmarks.learning learners": "the learners at equal agent-steps",
    "python -m benchmarks.learning learners only=[ppo,mappo]": "some variants; their figures stay beside the runs",
    "python -m benchmarks.learning social steps=60_000 episodes=4 folder=/tmp/quick": "a quick look",
}
SOURCES = (
    *suite.WORLD,
    *(f"agents/{name}.py" for name in ("iterations", "league", "mappo", "networks", "policy", "ppo", "recurrent", "weights")),
)
"""What a training depends on beside its settings."""
METRICS = (
    "slo_attainment",
    "worst_provider_slo_attainment",
    "latency_s_mean",
    "latency_s_p99",
    "welfare",
    "gini_wealth",
    "delegated_share",
    "unfinished_share",
)
STATISTIC = (
    "interquartile mean over training seeds and episodes, [point, low, high]; 95 % percentile interval of "
    f"{protocol.RESAMPLES} resamples, each of whole training seeds and, in common, of episodes"
)
CLAIM, POLICY = "unit.json", "policy"
LOOKS = frozenset({"only", "seeds", "steps", "episodes"})
"""Settings that make a run a part, or a quick look, of what is kept."""


@dataclass(frozen=True)
class Study:
    """One file of conf/learning."""

    title: str
    train: list[str]  # overrides of every training
    evaluate: list[str]  # overrides of the market in which all are judged
    variants: dict[str, list[str]]  # variant -> further overrides of its training


@dataclass(frozen=True)
class Settings:
    """conf/learning.yaml, beside the group."""

    only: list[str]
    seeds: list[int]
    steps: Annotated[int, Range(1, 10**12, "agent-steps")]
    episodes: Annotated[int, Range(2, 100_000, "episodes")]
    folder: str
    output: str

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < max(2, len(self.seeds)):
            raise ValueError(f"seeds must be at least 2 different ones, got {self.seeds}")


@dataclass(frozen=True)
class Unit:
    """One variant from one seed."""

    variant: str
    seed: int
    words: tuple[str, ...]  # of train.py
    folder: Path
    digest: str  # of all that the training depends on
    agents: str  # name of the learner
    social: float  # weight of the mean over all providers in the reward

    @property
    def trained(self) -> bool:
        """Whether its policy is there, which is put down whole or not at all."""
        return (self.folder / POLICY).is_dir()


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status, 2 when a variant or a setting is refused."""
    from compose import compose, settings_text

    if not words or {"-h", "--help"} & set(words):
        print(settings_text("python -m benchmarks.learning NAME", ABOUT, EXAMPLES, "learning"), end="")
        return 0
    try:
        composed = compose([f"learning={words[0]}", *words[1:]], "learning")
        values = plain(composed.values, "conf/learning.yaml")
        study = read(Study, values.pop("learning"), composed.files["learning"])
        try:
            settings = read(Settings, values, "conf/learning.yaml")
        except SettingsError as error:
            raise composed.blame(error.slips) from None
        return run(words[0], study, settings, quick=bool(LOOKS & composed.spoken))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def run(name: str, study: Study, settings: Settings, *, quick: bool) -> int:
    """Train and play what has not been, then keep the figures; returns the exit status.

    quick    a part or a look: the file stays in the folder of the runs, as it does when a variant is refused
    errors   SettingsError, before anything is trained, for a folder of other settings or code; a refused variant is left out
    """
    from agents.progress import CountingProgress

    units, refused = plan(name, study, settings)
    for slip in refused:
        print(slip, file=sys.stderr)
    if not units:
        return 2
    for unit in units:
        claim(unit)
    with CountingProgress(name, len(units)) as progress:
        for number, unit in enumerate(units, 1):
            train(unit)
            found = play(name, unit, study, settings)
            progress.advance()
            attainment = float(statistics.iqm(found.metrics["slo_attainment"][:, None]))
            done = f"{number} of {len(units)}"
            print(f"{unit.variant} from seed {unit.seed}: attainment {attainment:.3f} ({done})", file=sys.stderr, flush=True)
    figures = summarise(name, study, settings, units)
    folder = Path(settings.folder) / name if quick or refused else Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"writes {folder / name}.json", file=sys.stderr)
    report(f"learning/{name}", figures, folder / f"{name}.json")
    return 2 if refused else 0


def plan(name: str, study: Study, settings: Settings) -> tuple[list[Unit], list[Slip]]:
    """Check every variant; gives their units, all of a seed before the next, so that a noisy hour meets all alike, and the slips.

    errors   SettingsError for `only` or `evaluate` that cannot be
    """
    from agents.evaluate import scene

    unknown = [variant for variant in settings.only if variant not in study.variants]
    if unknown:
        raise SettingsError(Slip("command line", "only", f"names {unknown[0]}; {did_you_mean(unknown[0], study.variants)}"))
    scene(study.evaluate)
    code = suite.digest_of(SOURCES)
    units, refused = [], []
    for seed in settings.seeds:
        for variant in settings.only or study.variants:
            try:
                units.append(_unit(name, study, settings, variant, seed, code))
            except SettingsError as error:
                told = [Slip(f"conf/learning/{name}.yaml", f"variants.{variant}", f"is left out: {slip}") for slip in error.slips]
                refused += [slip for slip in told if slip not in refused]
    return units, refused


def _unit(name: str, study: Study, settings: Settings, variant: str, seed: int, code: str) -> Unit:
    """Check one unit as train.py would.

    errors   SettingsError
    """
    from agents.settings import Learner
    from compose import compose
    from plan import check

    words = (*study.train, *study.variants[variant], f"agents.steps={settings.steps}", f"seed={seed}")
    composed = compose(words)
    try:
        found = check(composed.values, composed.files)
    except SettingsError as error:
        raise composed.blame(error.slips) from None
    assert isinstance(found.agents, Learner), "what does not learn has no agents.steps, and was refused"
    depends = {"seed": seed, "code": code, **{group: found.config[group] for group in ("env", "market", "agents")}}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
    folder = (Path(settings.folder) / name / variant / f"seed_{seed}").resolve()
    return Unit(variant, seed, words, folder, digest, found.agents.name, found.scenario.reward.social)


def claim(unit: Unit) -> None:
    """Write into a unit's folder what it is of; refuse one of other settings or code.

    errors   SettingsError
    """
    path = unit.folder / CLAIM
    if not path.is_file():
        unit.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"digest": unit.digest, "words": unit.words}) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["digest"] != unit.digest:
        same = found["words"] == list(unit.words)
        was = "the same settings and other code" if same else f"other settings ({' '.join(found['words'])})"
        raise SettingsError(Slip(str(unit.folder), "", f"was begun with {was}; remove it, or give folder=ANOTHER"))


def train(unit: Unit) -> None:
    """Train a unit that has not been, by train.py in a process of its own, from its checkpoint where there is one.

    errors   SystemExit with the last words of a run that fails
    """
    from agents.checkpoint import FILE

    if unit.trained:
        return
    place = [f"output={unit.folder}", f"name={POLICY}", f"hydra.run.dir={unit.folder / 'run'}", "tracking=csv", "eval_seeds=2"]
    resume = [f"resume={unit.folder / 'run'}"] if (unit.folder / "run" / FILE).is_file() else []
    child([sys.executable, "train.py", *unit.words, *place, *resume])


def play(name: str, unit: Unit, study: Study, settings: Settings) -> Any:
    """Play a trained unit by the protocol, unless it has been; gives what it did."""
    from agents import rounds

    entrant = f"{unit.variant}.seed_{unit.seed}"
    entrants = {entrant: suite.Entrant(str(unit.folder / POLICY), {}, [])}
    experiment = suite.Experiment(study.title, study.evaluate, settings.episodes, [], entrants, {}, {})
    cells = str(Path(settings.folder) / name / "cells")
    (cell,) = suite.plan("learning", name, experiment, suite.Settings([], None, settings.output, cells, 1))
    if not cell.path.is_file():
        suite.play_cell(cell)
    return rounds.read(cell.path).played


def summarise(name: str, study: Study, settings: Settings, units: Sequence[Unit]) -> dict[str, Any]:
    """Give all that is kept, of units that have been trained and played."""
    from agents.provenance import source

    scores = {
        variant: _scores([play(name, unit, study, settings) for unit in units if unit.variant == variant])
        for variant in dict.fromkeys(unit.variant for unit in units)
    }
    return {
        "title": study.title,
        "command": f"python -m benchmarks.learning {name}",
        "protocol": protocol.VERSION,
        "source": source()._asdict(),
        "statistic": STATISTIC,
        "seeds": settings.seeds,
        "steps": settings.steps,
        "episodes": settings.episodes,
        "first_episode": protocol.FIRST_SEED,
        "evaluate": study.evaluate,
        "variants": {
            variant: _variant([unit for unit in units if unit.variant == variant], found, next(iter(scores.values())))
            for variant, found in scores.items()
        },
    }


def _scores(played: Sequence[Any]) -> dict[str, Array]:
    """Stack the metrics of a variant's units: metric -> (training seeds, episodes)."""
    import numpy as np

    return {metric: np.array([one.metrics[metric] for one in played]) for metric in METRICS}


def _variant(units: Sequence[Unit], scores: Mapping[str, Array], first: Mapping[str, Array]) -> dict[str, Any]:
    """Tell of a variant what it reached, how far that is from the first variant, and what its learning cost."""
    cards = [yaml.safe_load((unit.folder / POLICY / "card.yaml").read_text(encoding="utf-8"))["training"] for unit in units]
    return {
        "agents": units[0].agents,
        "social": units[0].social,
        "set": [word for word in units[0].words if not word.startswith("seed=")],
        "agent_steps": [card["agent_steps"] for card in cards],
        "summary": {metric: rounded(statistics.crossed(scores[metric])) for metric in METRICS},
        "difference": {metric: rounded(statistics.crossed_difference(scores[metric], first[metric])) for metric in METRICS},
        "per_seed": {metric: [float(f"{statistics.iqm(row[:, None]):.6g}") for row in scores[metric]] for metric in METRICS},
        "learning_s": spread([card["wall_s"] for card in cards]),
        "agent_steps_per_s": spread([card["agent_steps"] / card["wall_s"] for card in cards]),
    }


def read_kept(path: Path) -> dict[str, Any]:
    """Read a file of figures.

    errors   ValueError when it is none, or of another version of the protocol
    """
    again = f"write it with python -m benchmarks.learning {path.stem}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as figures of learning ({error}); {again}") from error
    if not isinstance(found, dict) or found.get("benchmark") != f"learning/{path.stem}":
        raise ValueError(f"{path}: is not a file of figures (benchmark must be learning/{path.stem}); {again}")
    if found.get("protocol") != protocol.VERSION:
        raise ValueError(f"{path}: protocol is {found.get('protocol')}, this build's is {protocol.VERSION}; {again}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
