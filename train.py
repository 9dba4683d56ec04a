"""Trains one policy for all providers of a market and holds it against every baseline.

compose -> check -> train -> export -> evaluate -> log, from top to bottom. `python train.py --help` says how to call it; from
Python, `train(compose(["env=paper-2", "agents=ppo"]).values)`. Whatever is heavy is imported after the settings are found good.
"""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import multirun
from agents.settings import Fixed, Learner, MappoLearner, RecurrentLearner
from compose import CONF, SPOKEN, compose_each, help_text, resumed
from plan import GROUPS, Plan, check
from settings import SettingsError, Slip

if TYPE_CHECKING:
    from agents.iterations import Trained
    from agents.policy import Baseline
    from agents.scores import Evaluation
    from agents.tracking import Tracker


REFUSED, STOPPED = 2, 130  # exit codes: settings or files that cannot be used; a run stopped from the keyboard
MODES = ("run", "multirun", "cfg", "info", "shell-completion")  # Hydra's, of which a command line has one
WIDTH = 150  # columns of a table where no terminal says how many there are
ABOUT = "Train, evaluate and export a policy for providers in an open market of LLM services."
EXAMPLES = {
    "python train.py": "learn the default market with PPO, compare with every baseline",
    "python train.py env=paper-2 agents=maskable_ppo": "another scenario, another learner",
    "python train.py agents=paper tracking=none": "evaluate the paper's rules; nothing to learn",
    "python train.py market.duel_rate=0.2 agents.steps=2_000_000": "other values; --cfg job prints them all",
    "python train.py -m seed=0,1,2 hydra/launcher=joblib": "several runs side by side; without joblib in turn",
    "python train.py resume=runs/wwwserve/ppo/2026-01-31_12-00-00_s0": "go on from a run's checkpoint",
}


@dataclass(frozen=True)
class Result:
    """What a run has come to."""

    name: str
    folder: Path  # of the run
    policy: Path | None  # folder of the exported policy; None when there was nothing to learn
    agent_steps: int
    wall_s: float  # of learning
    subject: str  # the run's own policy, as `evaluation` names it
    evaluation: "Evaluation"
    tracked: str | None  # address or file of the tracker's run

    @property
    def score(self) -> float:
        """SLO attainment of the run's own policy: what a sweeper maximises."""
        found = self.evaluation.estimate(self.subject, "slo_attainment")
        assert found is not None, "an episode without a due request is refused by the evaluation"
        return found.point


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; every slip is refused by name before anything heavy is loaded, with exit code 2."""
    words = sys.argv[1:] if words is None else list(words)
    try:
        arguments = _arguments(words)
        if arguments.help:
            print(help_text("python train.py", ABOUT, EXAMPLES, GROUPS), end="")
            return
        overrides = resumed(arguments.overrides)
        if not (arguments.hydra_help or arguments.shell_completion or arguments.experimental_rerun):
            check_command_line(arguments, overrides)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(REFUSED)
    flags = [word for word in words if word not in arguments.overrides]
    sys.argv = [sys.argv[0], *flags, *overrides]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_job)()


def _arguments(words: Sequence[str]) -> Any:
    """Read the flags as Hydra does, and say in one line which is none."""
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise SettingsError(Slip(SPOKEN, "", f"{message}; settings are written KEY=VALUE, see --help"))

    parser.error = refuse  # type: ignore[method-assign, assignment]
    arguments = parser.parse_args(list(words))
    modes = [f"--{mode}" for mode in MODES if getattr(arguments, mode.replace("-", "_"))]
    if len(modes) > 1:
        refuse(f"{' and '.join(modes)} exclude each other; say one of them")
    return arguments


def check_command_line(arguments: Any, overrides: Sequence[str]) -> None:
    """Compose and check every choice of a command line.

    errors   SettingsError with the slips of the first run that has any
    """
    conf = Path(arguments.config_path) if arguments.config_path else CONF
    more = Path(arguments.config_dir) if arguments.config_dir else None
    for composed in compose_each(overrides, arguments.config_name or "config", conf, multirun=arguments.multirun, more=more):
        try:
            check(composed.values, composed.files)
        except SettingsError as error:
            raise composed.blame(error.slips) from error


def _job(config: DictConfig) -> float:
    """Do one run under Hydra; returns its score. In a multirun a refused one has none, and the others go on."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode is not RunMode.MULTIRUN:
        score = _score(config, folder)
        return sys.exit(REFUSED) if math.isnan(score) else score
    words = hydra_config.overrides.task
    config = multirun.own_output(config, words, folder)
    with multirun.announced(hydra_config.job.num, words, hydra_config.launcher._target_, folder):
        return _score(config, folder)


def _score(config: DictConfig, folder: Path) -> float:
    """Train under Hydra; returns the score, nan when the run was refused, which is then told."""
    files = {group: f"conf/{group}/{option}.yaml" for group, option in HydraConfig.get().runtime.choices.items()}
    try:
        return train(config, folder, files).score
    except _refusals() as error:
        sys.stderr.write(f"{error}\n")
        return math.nan
    except KeyboardInterrupt:
        from agents.checkpoint import FILE

        way_on = f"; go on with resume={folder}" if (folder / FILE).exists() else ""
        sys.stderr.write(f"stopped{way_on}\n")
        sys.exit(STOPPED)


def _refusals() -> tuple[type[Exception], ...]:
    """List the errors whose text says all that a user needs; asked for only when something was raised."""
    from agents.card import PolicyError
    from agents.checkpoint import CheckpointError
    from agents.iterations import LearningError

    return SettingsError, CheckpointError, PolicyError, LearningError


def train(
    config: DictConfig | Mapping[str, Any],
    folder: Path | None = None,
    files: Mapping[str, str] | None = None,
    watch: Callable[[Mapping[str, float], int], None] | None = None,
) -> Result:
    """Do one run: train where there is something to learn, export, evaluate beside every baseline, log.

    config   composed from conf/ (see compose.compose), or a mapping of that form
    folder   of the run, for checkpoint, metrics and report; None: runs/NAME/TIME
    files    see `check`
    watch    is told of metrics and agent-steps whenever the tracker is; what it raises ends the run
    errors   SettingsError, CheckpointError, PolicyError, LearningError; a failed run is marked so in its tracker
    """
    plan = check(config, files)
    folder = folder or Path("runs") / plan.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_s{plan.top.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    tracker = _open_tracker(plan, folder)
    if watch:
        from agents.tracking import WatchedTracker

        tracker = WatchedTracker(tracker, watch)
    failed = True
    try:
        with _torch_cache(folder / "torch"):
            result = _run(plan, folder, tracker)
        failed = False
        return result
    finally:
        tracker.finish(failed=failed)


@contextmanager
def _torch_cache(folder: Path) -> Iterator[None]:
    """Have torch make its cache folder here, to be removed, and not in the temporary directory, to be left."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if before is None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
            shutil.rmtree(folder, ignore_errors=True)


def _open_tracker(plan: Plan, folder: Path) -> "Tracker":
    from agents import checkpoint
    from agents.provenance import source
    from agents.tracking import Run, open_tracker

    resumed_id = checkpoint.read(Path(plan.top.resume)).facts.get("tracker_id") if plan.top.resume else None
    learns = isinstance(plan.agents, Learner)
    run = Run(
        name=f"{plan.name}_s{plan.top.seed}",
        group=plan.scenario.name,
        job_type="train" if learns else "eval",
        tags=(plan.scenario.name, plan.agents.name),
        config=plan.config,
        source=source(),
        resumed_id=resumed_id,
    )
    return open_tracker(plan.tracking, folder, run)


def _run(plan: Plan, folder: Path, tracker: "Tracker") -> Result:
    """Train and export where there is something to learn; evaluate what a node would load; log."""
    from agents.policy import learned

    OmegaConf.save(OmegaConf.create(plan.config), folder / "config.yaml")
    policy, steps, wall_s = None, 0, 0.0
    if isinstance(plan.agents, Learner):
        policy, steps, wall_s = _learn(plan, plan.agents, folder, tracker)
    subject = learned(policy) if policy else _baseline(plan)
    evaluation = _evaluate(plan, subject)
    if policy:
        from agents.export import add_scores

        add_scores(policy, evaluation.card_scores())
    _report(plan, evaluation, subject, folder, tracker, steps)
    if policy:
        metadata = {"env": plan.scenario.name, "agent_steps": steps, "scores": evaluation.card_scores()}
        tracker.artifact(policy, f"policy-{plan.name}", metadata, steps)
        print(f"policy: {policy}")
    return Result(plan.name, folder, policy, steps, wall_s, subject.name, evaluation, tracker.where)


def _learn(plan: Plan, settings: Learner, folder: Path, tracker: "Tracker") -> tuple[Path, int, float]:
    """Train and export; returns the policy's folder, the agent-steps and the seconds of learning."""
    from agents.export import Origin, export
    from agents.provenance import source
    from envs.wwwserve.batch import PART_NAMES, Batch

    batch = Batch(plan.school, plan.terms, plan.profiles, networks=settings.networks, seed=plan.top.seed, stagger=True)
    pay = plan.scenario.reward
    weights = dict(
        zip((f"reward_{name}" for name in PART_NAMES), (pay.value, -pay.penalty, pay.exchange, -pay.energy), strict=True)
    )

    def parts() -> dict[str, float]:
        """Take the mean reward apart."""
        means = batch.reward_parts.mean(axis=(0, 1)).tolist()
        return {name: weight * mean for (name, weight), mean in zip(weights.items(), means, strict=True)}

    resume = Path(plan.top.resume) if plan.top.resume else None
    run: dict[str, Any] = {"seed": plan.top.seed, "folder": folder, "resume": resume, "probe": parts}
    trained = learner_of(settings)(batch, settings, tracker, **run)
    origin = Origin(
        config=plan.config,
        seeds={"train": plan.top.seed, "evaluation": [plan.top.eval_first_seed, plan.top.eval_seeds]},
        source=source(),
        control_s=plan.school.control_s,
        agent_steps=trained.steps,
        wall_s=trained.wall_s,
        wandb=tracker.where if tracker.where and tracker.where.startswith("http") else tracker.id,
        command=_command(plan),
        scores={},
    )
    policy = export(trained.policy, Path(plan.top.output) / plan.name, origin)
    return policy, trained.steps, trained.wall_s


def learner_of(settings: Learner) -> Callable[..., "Trained"]:
    """Find what learns in a batch."""
    if isinstance(settings, MappoLearner):
        from agents import mappo, recurrent

        return recurrent.learn if isinstance(settings, RecurrentLearner) else mappo.learn
    from agents import ppo
    from envs.wwwserve.sb3 import SB3Market

    return lambda batch, *settings_and_tracker, **run: ppo.learn(SB3Market(batch), *settings_and_tracker, **run)


def _command(plan: Plan) -> str:
    """Write the command that makes this run again."""
    if HydraConfig.initialized():
        words = HydraConfig.get().overrides.task
        return shlex.join(["python", "train.py", *(word for word in words if not word.startswith("resume="))])
    return f"python train.py env={plan.scenario.name} agents={plan.agents.name} seed={plan.top.seed}  # with the config below"


def _baseline(plan: Plan) -> "Baseline":
    """Make the policy of a run that has nothing to learn."""
    from agents.policy import Baseline, LevelsPolicy, load

    if isinstance(plan.agents, Fixed):
        levels = LevelsPolicy("fixed", (plan.agents.accept, plan.agents.forward, plan.agents.commit))
        return Baseline("fixed", "policy", "market", levels)
    return load(plan.agents.name, seed=plan.top.seed)


def _evaluate(plan: Plan, subject: "Baseline") -> "Evaluation":
    """Play the run's own policy and every baseline on the same seeds."""
    from agents.evaluate import evaluate
    from agents.names import KINDS
    from agents.policy import load
    from agents.progress import CountingProgress
    from envs.wwwserve.batch import Batch

    others = [load(name, seed=plan.top.seed) for name in KINDS if name != subject.name]
    steps = (1 + len(others)) * plan.scenario.steps

    def make(*, networks: int, seed: int, dispatch: str) -> Any:
        world = plan.scenario, plan.terms, plan.profiles
        return Batch(*world, networks=networks, seed=seed, dispatch=dispatch, record=True, autoreset=False)

    with CountingProgress("evaluate", steps) as progress:
        seeds = plan.top.eval_seeds, plan.top.eval_first_seed
        try:
            return evaluate(make, [subject, *others], *seeds, on_step=progress.advance)
        except ValueError as error:  # no request is due within the horizon
            raise SettingsError(Slip(f"conf/env/{plan.scenario.name}.yaml", "", str(error))) from error


def _report(plan: Plan, evaluation: "Evaluation", subject: "Baseline", folder: Path, tracker: "Tracker", steps: int) -> None:
    """Show the comparison in the terminal, write it to the run's folder, and log it."""
    from rich.console import Console

    from agents.evaluate import write
    from agents.provenance import source
    from agents.scores import table

    Console(width=None if sys.stdout.isatty() else WIDTH).print(table(evaluation))
    write(evaluation, folder, config=plan.config, source=source()._asdict())
    print(f"report: {folder / 'report.png'}, and evaluation.json beside it")
    found = evaluation.summary(subject.name)
    tracker.log({f"eval/{name}": estimate.point for name, estimate in found.items() if estimate}, steps)
    tracker.table("eval/scores", *evaluation.rows(), steps)
    tracker.picture("eval/report", folder / "report.png", steps)


if __name__ == "__main__":
    from train import main as importable  # what lives in __main__ reaches the processes of a parallel multirun as a broken copy

    importable()
