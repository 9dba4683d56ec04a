"""Searches a learner's settings with Optuna: a trial is one run of train(), judged on seeds that no evaluation uses.

`python tune.py env=tiny agents=ppo trials=20`; conf/tune.yaml holds the space. A study lies in one SQLite file: the same command
goes on where the last one was stopped, and ends as one that never was. One process works on a study at a time.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from agents.settings import Learner
from compose import SPOKEN, Composed, compose
from plan import Plan, check
from settings import Range, SettingsError, Slip, plain, read, show
from train import REFUSED, STOPPED, train

if TYPE_CHECKING:
    from optuna import Study, Trial

PLACE = "conf/tune.yaml"
TICKS = 20
"""Parts of a run after which it may be pruned: trials are compared at the same part, however long their iterations are."""
HELP = """Search a learner's settings; conf/tune.yaml holds the space, and says what each value is.

  python tune.py env=paper-1 agents=ppo trials=20
  python tune.py env=tiny agents=ppo trials=3 agents.steps=20_000 'space={agents.gamma: {low: 0.9, high: 0.99, log: false}}'
"""


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends, which belong to it."""

    low: float
    high: float
    log: bool  # drawn evenly on a logarithmic scale

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 on a logarithmic scale, got {self.low:g}")


@dataclass(frozen=True)
class Search:
    """conf/tune.yaml."""

    trials: Annotated[int, Range(1, 100_000, "trials")]
    search_seed: Annotated[int, Range(0, 2**31 - 1, "")]
    startup_trials: Annotated[int, Range(1, 100_000, "trials")]
    prune_startup_trials: Annotated[int, Range(1, 100_000, "trials")]
    prune_from: Annotated[float, Range(0, 1, "share")]
    validation_seeds: Annotated[int, Range(2, 100_000, "seeds")]
    validation_first_seed: Annotated[int, Range(0, 2**31 - 1, "")]
    study: str | None
    folder: str
    space: dict[str, Any]


Space = Mapping[str, Interval | list[str]]
"""Setting -> where its values are drawn from; choices stand as they are written on the command line."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a slip is refused by name before the first trial, with exit code 2."""
    words = list(sys.argv[1:] if words is None else words)
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    try:
        _ask_for_optuna()
        mine, rest = split(words)
        composed = compose(mine, "tune")
        search, space = read_search(composed)
        plan = _check_each(search, space, rest)
        print(told(tune(search, space, plan, rest), rest))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        sys.exit(STOPPED)


def _ask_for_optuna() -> None:
    if find_spec("optuna") is None:
        raise SettingsError(Slip("tune.py", "", "needs Optuna: pip install 'wwwserve[sweep]'"))


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the words that conf/tune.yaml knows from those of train.py.

    errors   SettingsError for a flag, and for `output` and `resume`, of which every trial has its own
    """
    known = {field.name for field in fields(Search)}
    keys = [word.lstrip("+~").partition("=")[0].partition(".")[0] for word in words]
    for word, key in zip(words, keys, strict=True):
        if word.startswith("-") or key in ("output", "resume", "eval_seeds", "eval_first_seed"):
            raise SettingsError(Slip(SPOKEN, word, "has no meaning in a search; conf/tune.yaml lists what has"))
    mine = [word for word, key in zip(words, keys, strict=True) if key in known]
    if "space" in keys:
        mine.insert(0, "~space")  # a space that is given replaces the file's, into which Hydra would merge it
    return mine, [word for word, key in zip(words, keys, strict=True) if key not in known]


def read_search(composed: Composed) -> tuple[Search, Space]:
    """Read conf/tune.yaml and its space.

    errors   SettingsError
    """
    try:
        search = read(Search, plain(composed.values, PLACE), PLACE)
        return search, _read_space(search.space)
    except SettingsError as error:
        raise composed.blame(error.slips) from error


def _read_space(values: Mapping[str, Any]) -> Space:
    if not values:
        raise SettingsError(Slip(PLACE, "space", "must name at least one setting"))
    space: dict[str, Interval | list[str]] = {}
    for key, value in values.items():
        if isinstance(value, list) and value:
            space[key] = [said if isinstance(said, str) else json.dumps(said) for said in value]
        elif isinstance(value, Mapping):
            space[key] = read(Interval, value, f"{PLACE}, {key}")
        else:
            raise SettingsError(Slip(PLACE, f"space.{key}", f"must be {{low, high, log}} or a list of choices, got {show(value)}"))
    return space


def _check_each(search: Search, space: Space, words: Sequence[str]) -> Plan:
    """Check the run without and with every end and choice of the space; returns the plan of the first."""

    def checked(*more: str) -> Plan:
        composed = compose([*words, *more])
        try:
            return check(composed.values, composed.files)
        except SettingsError as error:
            raise composed.blame(error.slips) from error

    plan = checked(*_judged(search))
    if not isinstance(plan.agents, Learner):
        raise SettingsError(Slip(SPOKEN, "agents", f"is {plan.agents.name}, which has nothing to learn; choose a learner"))
    for key, span in space.items():
        for end in (_number(span.low), _number(span.high)) if isinstance(span, Interval) else span:
            checked(f"{key}={end}")
    return plan


def _judged(search: Search) -> list[str]:
    """Say on which episodes a trial is judged."""
    return [f"eval_first_seed={search.validation_first_seed}", f"eval_seeds={search.validation_seeds}"]


def _number(value: float) -> str:
    """Four digits are more than a search can tell apart, and can be read."""
    return f"{value:.4g}"


def tune(search: Search, space: Space, plan: Plan, words: Sequence[str]) -> "Study":
    """Run trials until as many as asked for have ended.

    plan     of a run without the space's settings
    words    of train.py, for every trial
    errors   SettingsError when the study's file belongs to other settings
    """
    import optuna

    assert isinstance(plan.agents, Learner)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(search.folder) / (search.study or plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    warm = round(search.prune_from * TICKS)
    study = optuna.create_study(
        study_name=folder.name,
        storage=f"sqlite:///{folder / 'study.db'}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=search.prune_startup_trials, n_warmup_steps=warm),
    )
    _claim(study, folder, search, plan, words)
    while (done := len(ended(study))) < search.trials:
        # a sampler of its own for each, so that a search in several sittings draws what one in a single sitting would
        seed = int(np.random.SeedSequence([search.search_seed, done]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.startup_trials)
        trial = study.ask()
        with _failed_if_left(study, trial):
            line = _try(study, trial, space, [*words, *_judged(search)], folder / f"trial_{done:03}")
        sys.stderr.write(f"trial {done + 1} of {search.trials}: {line}\n")
    return study


def ended(study: "Study") -> list[Any]:
    """List the trials that have come to an end; one that was stopped is tried again."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


@contextmanager
def _failed_if_left(study: "Study", trial: "Trial") -> Iterator[None]:
    """Note that a trial was left before its end."""
    from optuna.trial import TrialState

    over = False
    try:
        yield
        over = True
    finally:
        if not over:
            study.tell(trial, state=TrialState.FAIL)


def _try(study: "Study", trial: "Trial", space: Space, words: Sequence[str], folder: Path) -> str:
    """Run one trial; returns what to say of it. One whose weights diverge is as bad as a pruned one, and is told like it."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    from agents.iterations import LearningError

    said = [f"{key}={_draw(trial, key, span)}" for key, span in space.items()]
    composed = compose([*words, *said, f"output={folder}"])
    folder.mkdir(parents=True, exist_ok=True)
    trial.set_user_attr("words", said)
    try:
        with (folder / "output.txt").open("w", encoding="utf-8") as text, redirect_stdout(text):
            result = train(composed.values, folder, composed.files, _pruner(trial, int(composed.values.agents.steps)))
    except (TrialPruned, LearningError) as error:
        study.tell(trial, state=TrialState.PRUNED)
        return f"pruned {error}  {' '.join(said)}"
    found = result.evaluation.estimate(result.subject, "slo_attainment")
    assert found is not None, "an episode without a due request is refused by the evaluation"
    trial.set_user_attr("attainment", [round(float(value), 6) for value in found])
    study.tell(trial, result.score)
    return f"attainment {found.point:.3f} [{found.low:.3f}, {found.high:.3f}]  {' '.join(said)}"


def _draw(trial: "Trial", key: str, span: Interval | list[str]) -> str:
    if isinstance(span, Interval):
        return _number(trial.suggest_float(key, span.low, span.high, log=span.log))
    return str(trial.suggest_categorical(key, span))


def _pruner(trial: "Trial", steps: int) -> Callable[[Mapping[str, float], int], None]:
    """Make what watches a run: after each part of it the mean reward since the last is reported, and a poor trial ends.

    steps   agent-steps of the whole run
    """
    from optuna import TrialPruned

    rewards: list[float] = []
    last = 0

    def watch(values: Mapping[str, float], step: int) -> None:
        nonlocal last
        if "train/reward_mean" not in values:
            return
        rewards.append(values["train/reward_mean"])
        tick = min(TICKS, TICKS * step // steps)
        if tick == last:
            return
        trial.report(float(np.mean(rewards)), tick)
        rewards.clear()
        last = tick
        if tick < TICKS and trial.should_prune():
            raise TrialPruned(f"after {step:,} agent-steps")

    return watch


def _claim(study: "Study", folder: Path, search: Search, plan: Plan, words: Sequence[str]) -> None:
    """Write into a new study what it is of; refuse one of other settings, whose trials cannot be compared."""
    values = [plan.config, search.space, search.search_seed, search.startup_trials, search.prune_startup_trials, search.prune_from]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    if study.user_attrs.setdefault("digest", digest) != digest:
        begun = shlex.join(study.user_attrs["words"])
        rule = f"is of other settings, or another space (begun with: {begun}); give study=ANOTHER_NAME, or those again"
        raise SettingsError(Slip(str(folder / "study.db"), "", rule))
    if "words" not in study.user_attrs:
        study.set_user_attr("digest", digest)
        study.set_user_attr("words", list(words))


def told(study: "Study", words: Sequence[str]) -> str:
    """Say which trial was best, as a command that trains with its settings and evaluates on the unseen seeds."""
    whole = [trial for trial in ended(study) if trial.value is not None and "attainment" in trial.user_attrs]
    if not whole:
        return "no trial came to its end; widen the space, or lower prune_from"
    best = max(whole, key=lambda trial: trial.value)
    point, low, high = best.user_attrs["attainment"]
    command = shlex.join(["python", "train.py", *words, *best.user_attrs["words"]])
    judged = f"{len(whole)} whole trials, {len(ended(study)) - len(whole)} pruned"
    return f"best of {judged}: attainment {point:.3f} [{low:.3f}, {high:.3f}] on the validation seeds\n{command}"


if __name__ == "__main__":
    main()
