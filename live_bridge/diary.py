"""Logs a report to Weights & Biases; wandb is imported here and nowhere else in this room."""

import importlib.util
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settings import SettingsError, Slip

PROJECT = "wwwserve"
HOST = "api.wandb.ai"


def write(content: Mapping[str, Any], folder: Path) -> str:
    """Log one report as a run of its own; returns where it went.

    content   of check.json
    folder    holds check.png, and takes wandb's files
    errors    SettingsError when wandb is not installed
    """
    if importlib.util.find_spec("wandb") is None:
        raise SettingsError(Slip("command line", "--wandb", "needs the package wandb; pip install wandb"))
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if has_key(os.environ) else "offline")
    config = {key: content[key] for key in ("scenario", "seed", "stage", "host", "source", "horizon_s", "requests")}
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        job_type="check",
        name=f"check_{content['scenario']}",
        config=config,
        dir=str(folder),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, console="off"),
    )
    columns = ["policy", "load", *next(iter(content["policies"].values()))["lines"][0]]
    table = [[name, found["load"], *line.values()] for name, found in content["policies"].items() for line in found["lines"]]
    run.log({"check": wandb.Table(columns=columns, data=table), "check_picture": wandb.Image(str(folder / "check.png"))})
    for name, found in content["policies"].items():
        run.summary.update({f"{name}/{line['metric']}_difference": line["difference"] for line in found["lines"]})
    run.summary["verdict"] = content["verdict"]
    where = run.url if mode == "online" else str(Path(run.dir).parent)
    run.finish(exit_code=int(content["verdict"] == "missed"))
    return f"W&B: {where}" if mode == "online" else f"W&B: {mode}; to upload this run later: wandb login && wandb sync {where}"


def has_key(environment: Mapping[str, str]) -> bool:
    """Look for an API key where wandb does: its variable, then the netrc file; it would ask for one else."""
    if environment.get("WANDB_API_KEY"):
        return True
    place = Path(environment.get("NETRC") or Path(environment.get("HOME") or Path.home()) / ".netrc")
    try:
        found = netrc.netrc(place).authenticators(HOST)
    except (OSError, netrc.NetrcParseError):  # no such file, or one that wandb could not read either
        return False
    return bool(found and found[2])
