"""Many runs of one command line: each says its number, keeps its policy apart from the others', and a table closes them.

Hydra's launchers start the jobs. What they found is read from their folders, whichever process or host they ran on, as long as
the folder is one for all. `python -m multirun FOLDER` shows the table again, also of a multirun that was stopped.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from settings import SettingsError, Slip

WORDS_FILE = "output.txt"
"""Takes what a job prints when others run beside it; its progress goes to the terminal, each line under the job's number."""
IN_TURN = "BasicLauncher"
REFUSED = 2
WIDTH = 150  # columns of the table where no terminal says how many there are


class Job(NamedTuple):
    """One run of a multirun, as its folder tells."""

    number: int
    words: tuple[str, ...]  # its part of the command line
    folder: Path
    evaluation: Mapping[str, Any] | None  # evaluation.json; None: it was refused, has failed or was stopped

    @property
    def subject(self) -> str:
        """Name the run's own policy: a run plays it before all others."""
        assert self.evaluation is not None
        return str(next(iter(self.evaluation["policies"])))


class ShowJobs(Callback):
    """Hydra calls it around a multirun (conf/config.yaml)."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show the table; exit with 2 when a job has no result, so that a script notices."""
        jobs = read_jobs(Path(str(config.hydra.sweep.dir)))
        show(jobs)
        if any(job.evaluation is None for job in jobs):
            sys.exit(REFUSED)


def read_jobs(sweep: Path) -> list[Job]:
    """Read the folders of a multirun's jobs, in the order of their numbers.

    errors   SettingsError when there are none
    """
    jobs = []
    for file in sweep.glob("**/.hydra/hydra.yaml"):
        number = _number(file)
        if number is None:
            continue
        said = file.parent / "overrides.yaml"  # the last that Hydra writes before a job begins
        words = yaml.safe_load(said.read_text(encoding="utf-8")) if said.exists() else None
        found = file.parents[1] / "evaluation.json"
        evaluation = json.loads(found.read_text(encoding="utf-8")) if found.exists() else None
        jobs.append(Job(number, tuple(map(str, words or ())), file.parents[1], evaluation))
    if not jobs:
        raise SettingsError(Slip(str(sweep), "", "holds no jobs of a multirun; name a folder such as runs/sweeps/TIME"))
    return sorted(jobs)


def _number(file: Path) -> int | None:
    """Read a job's number; None for a run that is no job of a multirun, and where Hydra was stopped while it wrote the file."""
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return None
    match written:
        case {"hydra": {"job": {"num": int(number)}}}:
            return number
    return None


def table(jobs: Sequence[Job]) -> Table:
    """Lay out a row a job: what sets it apart, its attainment with the 95 % interval, and what that is above the paper's rules."""
    common = set.intersection(*(set(job.words) for job in jobs)) if len(jobs) > 1 else set()
    shown = Table(title=f"{len(jobs)} jobs: interquartile mean over seeds, and its 95 % interval")
    for name in ("job", "what sets it apart", "policy", "SLO attainment", "above paper", "mean latency, s"):
        shown.add_column(name, justify="left" if name in ("what sets it apart", "policy") else "right")
    for job in jobs:
        apart = " ".join(word for word in job.words if word not in common)
        shown.add_row(str(job.number), escape(apart), *_cells(job))
    return shown


def _cells(job: Job) -> tuple[str, ...]:
    if job.evaluation is None:
        return "-", "no result", "-", "-"
    policy = job.evaluation["policies"][job.subject]
    above = policy["difference"].get("paper", {}).get("slo_attainment")
    attainment, latency = (_interval(policy["summary"][name]) for name in ("slo_attainment", "latency_s_mean"))
    return job.subject, attainment, "-" if above is None else _interval(above, "+.3f"), latency


def _interval(found: Sequence[float], form: str = ".3f") -> str:
    point, low, high = (format(value, form) for value in found)
    return f"{point} [{low}, {high}]"


def show(jobs: Sequence[Job]) -> None:
    """Print the table, and where a job without a result lies."""
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table(jobs))
    for job in jobs:
        if job.evaluation is None:
            print(f"job {job.number} has no result: {job.folder}")


def own_output(config: DictConfig, words: Sequence[str], folder: Path) -> DictConfig:
    """Keep a job's policy in its own folder, where no other job can replace it, unless the command line says `output`."""
    if any(word.lstrip("+").startswith("output=") for word in words):
        return config
    return OmegaConf.merge(config, {"output": str(folder)})  # type: ignore[return-value]  # a mapping merged into one is one


@contextmanager
def announced(number: int, words: Sequence[str], launcher: str, folder: Path) -> Iterator[None]:
    """Say which job begins; beside others, put its number before every line of progress and the rest into its folder.

    launcher   Hydra's class that started it
    """
    sys.stderr.write(f"job {number}: {' '.join(words)}\n")
    sys.stderr.flush()
    if launcher.endswith(IN_TURN):
        yield
        return
    labelled = Labelled(sys.stderr, f"job {number} | ")
    with (folder / WORDS_FILE).open("w", encoding="utf-8") as kept, redirect_stdout(kept), redirect_stderr(labelled):
        yield


class Labelled(TextIOBase):
    """Writes whole lines under a label, and is no terminal: bars of several processes would overwrite each other."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label, self._begun = stream, label, ""

    def write(self, text: str) -> int:
        """Write the lines that are whole; the rest waits for its end."""
        *whole, self._begun = (self._begun + text).split("\n")
        if whole:
            self._stream.write("".join(f"{self._label}{line}\n" for line in whole))
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Do nothing: whole lines are never held back."""

    def writable(self) -> bool:
        """Say that it takes text."""
        return True


def main(words: Sequence[str] | None = None) -> None:
    """Show the table of a multirun again."""
    words = sys.argv[1:] if words is None else words
    if len(words) != 1 or words[0].startswith("-"):
        sys.stderr.write("command line: must be the folder of a multirun: python -m multirun runs/sweeps/TIME\n")
        sys.exit(REFUSED)
    try:
        show(read_jobs(Path(words[0])))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
