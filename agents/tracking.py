"""Where a run's metrics, tables, pictures and policies go: W&B, TensorBoard, CSV files or nowhere, behind one protocol.

A tracker is opened in the run's folder and leaves nothing outside it. Its library is imported only when it is chosen.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.provenance import Source
from agents.settings import Tracking, Wandb
from settings import SettingsError, Slip

Row = Sequence[str | int | float]


@dataclass(frozen=True)
class Run:
    """What a tracker writes beside the metrics."""

    name: str  # such as ppo_wwwserve_s0
    group: str  # runs that belong together, such as one scenario's
    job_type: str  # train, eval
    tags: tuple[str, ...]
    config: Mapping[str, Any]  # resolved, plain
    source: Source
    resumed_id: str | None  # tracker's own id of the run that this one continues


class Tracker(Protocol):
    """What every tracker does; `step` counts agent-steps and never falls."""

    id: str | None  # the tracker's own name for the run; a checkpoint keeps it, so that a resumed run goes on under it
    where: str | None  # address or file in which a person finds the run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics by name; call it once an iteration, not once a step."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Row], step: int) -> None:
        """Write a table."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write a PNG file."""

    def artifact(self, path: Path, name: str, metadata: Mapping[str, Any], step: int) -> None:
        """Keep a policy's folder under a name, with what is known of it."""

    def finish(self, *, failed: bool = False) -> None:
        """Write what is left and close; a second call does nothing."""


def open_tracker(settings: Tracking, folder: Path, run: Run) -> Tracker:
    """Open the tracker that `settings` name, in the run's `folder`.

    errors   SettingsError when W&B is asked to be online and there is no API key, and when TensorBoard is not installed
    """
    if isinstance(settings, Wandb):
        from agents.tracking_wandb import WandbTracker

        return WandbTracker(settings, folder, run)
    if settings.name == "tensorboard":
        return TensorboardTracker(folder, run)
    return CsvTracker(folder) if settings.name == "csv" else NoTracker()


class WatchedTracker:
    """Hands all on to another tracker, and metrics to `watch` too, which may end the run by raising."""

    def __init__(self, tracker: Tracker, watch: Callable[[Mapping[str, float], int], None]) -> None:
        self._tracker, self._watch = tracker, watch
        self.id, self.where = tracker.id, tracker.where
        self.table, self.picture, self.artifact, self.finish = tracker.table, tracker.picture, tracker.artifact, tracker.finish

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics, then show them."""
        self._tracker.log(values, step)
        self._watch(values, step)


class NoTracker:
    """Keeps nothing."""

    id: str | None = None
    where: str | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Row], step: int) -> None:
        """Do nothing."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Do nothing."""

    def artifact(self, path: Path, name: str, metadata: Mapping[str, Any], step: int) -> None:
        """Do nothing."""

    def finish(self, *, failed: bool = False) -> None:
        """Do nothing."""


class CsvTracker:
    """metrics.csv with one row a call and the column agent_steps first; tables as NAME.csv, pictures as NAME.png."""

    id: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where: str | None = str(folder / "metrics.csv")
        self._path = folder / "metrics.csv"
        self._columns = ["agent_steps"]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append a row; new names become new columns, empty in the rows before."""
        row = {"agent_steps": step, **values}
        new = [name for name in row if name not in self._columns]
        if new or not self._path.exists():
            self._columns += new
            self._widen()
        with self._path.open("a", newline="", encoding="utf-8") as text:
            csv.DictWriter(text, self._columns, restval="").writerow(row)

    def _widen(self) -> None:
        """Write the file anew under the wider header; the old one stands until the new one is whole."""
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as text:
                rows = list(csv.DictReader(text))
        fresh = self._path.with_suffix(".csv.tmp")
        with fresh.open("w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(fresh, self._path)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Row], step: int) -> None:
        """Write NAME.csv."""
        with (self.folder / f"{_file(name)}.csv").open("w", newline="", encoding="utf-8") as text:
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows(rows)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Copy to NAME.png, unless it lies there already."""
        target = self.folder / f"{_file(name)}.png"
        if target.resolve() != path.resolve():
            shutil.copyfile(path, target)

    def artifact(self, path: Path, name: str, metadata: Mapping[str, Any], step: int) -> None:
        """Note in artifacts.csv where the policy lies."""
        with (self.folder / "artifacts.csv").open("a", newline="", encoding="utf-8") as text:
            csv.writer(text).writerow([step, name, path, json.dumps(dict(metadata), default=str)])

    def finish(self, *, failed: bool = False) -> None:
        """Do nothing: every row is on disk when `log` returns."""


class TensorboardTracker:
    """Event files in the folder `tensorboard` of the run."""

    id: str | None = None

    def __init__(self, folder: Path, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            way_out = "pip install 'wwwserve[tensorboard]', or take tracking=csv"
            rule = f"is tensorboard, and the package {error.name} is not installed; {way_out}"
            raise SettingsError(Slip("conf/tracking/tensorboard.yaml", "name", rule)) from error
        self.where: str | None = str(folder / "tensorboard")
        self._writer = SummaryWriter(self.where)
        self._writer.add_text("config", f"```\n{json.dumps(dict(run.config), indent=1, default=str)}\n```", 0)
        self._writer.add_text("source", f"commit {run.source.commit}, {'with' if run.source.dirty else 'no'} local changes", 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars and hand them to the disk, so that a viewer sees them at once."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Row], step: int) -> None:
        """Write a Markdown table as text."""
        lines = [" | ".join(map(str, row)) for row in (columns, ["---"] * len(columns), *rows)]
        self._writer.add_text(name, "\n".join(f"| {line} |" for line in lines), step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write an image."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def artifact(self, path: Path, name: str, metadata: Mapping[str, Any], step: int) -> None:
        """Note where the policy lies."""
        self._writer.add_text(f"artifact/{name}", f"{path}\n\n{json.dumps(dict(metadata), default=str)}", step)

    def finish(self, *, failed: bool = False) -> None:
        """Close the event file."""
        self._writer.close()


def _file(name: str) -> str:
    """Make a file's name of a metric's: eval/scores -> eval_scores."""
    return name.replace("/", "_")
