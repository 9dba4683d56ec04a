"""Tracks a run in Weights & Biases: online with an API key, offline without one, and never with a question.

`wandb.init` raises without a key where no terminal is, and asks where one is; so the mode is decided before. All files of
wandb go to the run's folder.
"""

import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
import wandb.errors

from agents.settings import Wandb
from agents.tracking import Row, Run
from settings import SettingsError, Slip

STEP = "global_step"
"""The x axis of every chart: agent-steps."""


class WandbTracker:
    """One W&B run."""

    def __init__(self, settings: Wandb, folder: Path, run: Run) -> None:
        mode = choose_mode(settings.mode, os.environ)
        self._environment = _Environment(folder)
        try:
            self._run = _start(settings, folder, run, mode)
        except wandb.errors.Error as error:
            if settings.mode != "auto" or mode == "offline":
                raise
            sys.stderr.write(f"W&B: cannot go online ({str(error).splitlines()[0]})\n")
            mode = "offline"
            self._run = _start(settings, folder, run, mode)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self.id: str | None = self._run.id
        self.where: str | None = str(Path(self._run.dir).parent) if mode == "offline" else self._run.url
        self._finished = False
        if mode == "offline":
            sys.stderr.write(f"W&B: offline; to upload this run later: wandb login && wandb sync {self.where}\n")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one row of metrics."""
        self._run.log({**values, STEP: step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Row], step: int) -> None:
        """Write a table."""
        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows]), STEP: step})

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write an image."""
        self._run.log({name: wandb.Image(str(path)), STEP: step})

    def artifact(self, path: Path, name: str, metadata: Mapping[str, Any], step: int) -> None:
        """Keep a policy as an artifact of type model; W&B links it to this run as its maker."""
        kept = wandb.Artifact(name, type="model", metadata=dict(metadata))
        for file in sorted(path.rglob("*")):
            if file.is_file():
                kept.add_file(str(file), name=file.relative_to(path).as_posix())
        self._run.log_artifact(kept, aliases=["latest", f"step-{step}"])

    def finish(self, *, failed: bool = False) -> None:
        """Upload or write what is left, stop wandb's own process, and so remove its temporary folders."""
        if self._finished:
            return
        self._finished = True
        self._run.finish(exit_code=int(failed))
        wandb.teardown()
        self._environment.restore()


def choose_mode(wanted: str, environment: Mapping[str, str]) -> str:
    """Decide between online and offline where `wanted` is auto.

    errors   SettingsError when online is asked for and there is no API key
    """
    if wanted in ("offline", "disabled"):
        return wanted
    if has_key(environment):
        return "online" if wanted == "auto" else wanted
    if wanted == "auto":
        return "offline"
    rule = f"is {wanted}, and there is no API key; run `wandb login`, set WANDB_API_KEY, or take mode=offline"
    raise SettingsError(Slip("conf/tracking/wandb.yaml", "mode", rule))


def has_key(environment: Mapping[str, str]) -> bool:
    """Look for an API key where wandb does: its variables, then the netrc file."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    home = Path(environment.get("HOME") or Path.home())
    places = [Path(environment["NETRC"])] if environment.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for place in places:
        try:
            found = netrc.netrc(place).authenticators(host)
        except (OSError, netrc.NetrcParseError):  # no such file, or one that wandb could not read either
            continue
        if found and found[2]:
            return True
    return False


def _start(settings: Wandb, folder: Path, run: Run, mode: str) -> Any:
    tags = (*run.tags, *settings.tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(",")))
    options = wandb.Settings(silent=True) if mode == "offline" else wandb.Settings()
    if "WANDB_CONSOLE" not in os.environ:
        options.console = "off"  # the progress bar would fill the log
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=settings.group or run.group,
        job_type=os.environ.get("WANDB_JOB_TYPE") or run.job_type,
        name=os.environ.get("WANDB_NAME") or run.name,
        tags=list(dict.fromkeys(tags)),
        config={**run.config, "source": run.source._asdict()},
        dir=os.environ.get("WANDB_DIR") or str(folder),
        mode=mode,  # type: ignore[arg-type]
        id=run.resumed_id,
        resume="allow" if run.resumed_id else None,
        reinit="finish_previous",
        settings=options,
    )


class _Environment:
    """Points wandb's folders into the run's folder, where the user has not chosen others, until `restore`."""

    def __init__(self, folder: Path) -> None:
        wanted = {
            "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
            "WANDB_DATA_DIR": str(folder / "wandb" / "data"),
            "WANDB_DISABLE_WEAVE": "true",  # it takes our package `agents` for another one and advertises
        }
        self._ours = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(self._ours)

    def restore(self) -> None:
        """Take back what was set."""
        for name in self._ours:
            os.environ.pop(name, None)
