"""Trackers write what they are given, into the run's folder and nowhere else, and never ask a question."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents import provenance
from agents.provenance import Source, source
from agents.settings import LocalTracking, Tracking, Wandb, read_agents, read_tracking
from agents.tracking import Run, Tracker, open_tracker
from settings import SettingsError

ROOT = Path(__file__).parents[2]
RUN = Run(
    name="ppo_wwwserve_s0",
    group="wwwserve",
    job_type="train",
    tags=("wwwserve", "ppo"),
    config={"seed": 0, "market": {"duel_rate": 0.1}},
    source=Source("1f2c9ab", dirty=True),
    resumed_id=None,
)
LOCAL: list[Tracking] = [LocalTracking("csv"), LocalTracking("tensorboard"), LocalTracking("none")]


def use(tracker: Tracker, folder: Path) -> None:
    """Call everything once."""
    picture, policy = folder / "picture.png", folder / "policy"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture)
    policy.mkdir(exist_ok=True)
    (policy / "policy.onnx").write_bytes(b"weights")
    tracker.log({"train/reward_mean": 0.5}, 100)
    tracker.log({"train/reward_mean": 0.75}, 200)
    tracker.log({"eval/slo_attainment": 0.9}, 200)
    tracker.table("eval/scores", ["policy", "point"], [["paper", 0.8], ["ppo", 0.9]], 200)
    tracker.picture("eval/report", picture, 200)
    tracker.artifact(policy, "policy-ppo_wwwserve", {"env": "wwwserve"}, 200)
    tracker.finish()
    tracker.finish()


def test_tensorboard_that_is_not_installed_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(SettingsError, match="the package tensorboard is not installed; pip install 'wwwserve\\[tensorboard\\]'"):
        open_tracker(LocalTracking("tensorboard"), tmp_path, RUN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", LOCAL, ids=lambda settings: settings.name)
def test_a_local_tracker_takes_everything_and_writes_nowhere_else(
    settings: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, temporary, here = (tmp_path / name for name in ("run", "temporary", "here"))
    for path in (folder, temporary, here):
        path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(here)
    use(open_tracker(settings, folder, RUN), folder)
    assert list(temporary.iterdir()) == [] and list(here.iterdir()) == []


def test_csv_keeps_one_row_a_call_and_grows_columns(tmp_path: Path) -> None:
    use(open_tracker(LocalTracking("csv"), tmp_path, RUN), tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as text:
        rows = list(csv.reader(text))
    assert rows == [
        ["agent_steps", "train/reward_mean", "eval/slo_attainment"],
        ["100", "0.5", ""],
        ["200", "0.75", ""],
        ["200", "", "0.9"],
    ]
    assert (tmp_path / "eval_scores.csv").read_text().splitlines() == ["policy,point", "paper,0.8", "ppo,0.9"]
    assert (tmp_path / "eval_report.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_tensorboard_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    use(open_tracker(LocalTracking("tensorboard"), tmp_path, RUN), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/reward_mean")]
    assert found == [(100, 0.5), (200, 0.75)]
    assert events.Images("eval/report")[0].width == 6
    assert "duel_rate" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def test_no_tracking_writes_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(LocalTracking("none"), tmp_path, RUN)
    tracker.log({"a": 1.0}, 1)
    tracker.finish()
    assert list(tmp_path.iterdir()) == [] and tracker.id is None and tracker.where is None


OFFLINE = """
import os, sys, tempfile
from pathlib import Path
from agents.provenance import Source
from agents.settings import Wandb
from agents.tracking import Run, open_tracker
sys.path.insert(0, {tests!r})
from test_tracking import RUN, use
folder = Path({folder!r})
tracker = open_tracker(Wandb("wandb", "wwwserve", None, {mode!r}, None, ["mine"]), folder, RUN)
print("id", tracker.id)
print("where", tracker.where)
use(tracker, folder)
print("left", sorted(name for name in os.environ if name.startswith("WANDB_")))
"""


def offline(tmp_path: Path, mode: str = "auto", **environment: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Use a W&B tracker in a process without a key, whose home, temporary and working folders are its own."""
    folder = tmp_path / "run"
    places = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "CWD")}
    for path in (folder, *places.values()):
        path.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    clean |= {"HOME": str(places["HOME"]), "TMPDIR": str(places["TMPDIR"]), "PYTHONPATH": str(ROOT)} | environment
    program = textwrap.dedent(OFFLINE.format(tests=str(Path(__file__).parent), folder=str(folder), mode=mode))
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env=clean,
        cwd=places["CWD"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, folder


def test_wandb_without_a_key_goes_offline_with_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done, folder = offline(tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert done.stderr == f"W&B: offline; to upload this run later: wandb login && wandb sync {run}\n"
    assert f"where {run}" in done.stdout and "left []" in done.stdout
    for place in ("tmpdir", "home", "cwd"):
        assert list((tmp_path / place).iterdir()) == [], place
    content = next(run.glob("run-*.wandb")).read_bytes()
    for word in (b"ppo_wwwserve_s0", b"mine", b"global_step", b"duel_rate", b"1f2c9ab", b"policy-ppo_wwwserve", b"reward_mean"):
        assert word in content, word


def test_wandb_respects_its_variables(tmp_path: Path) -> None:
    done, folder = offline(
        tmp_path, WANDB_NAME="chosen", WANDB_TAGS="one,two", WANDB_JOB_TYPE="league", WANDB_DIR=str(tmp_path / "home")
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "home" / "wandb").glob("offline-run-*")
    content = next(run.glob("run-*.wandb")).read_bytes()
    for word in (b"chosen", b"one", b"two", b"league"):
        assert word in content, word
    assert not list((folder / "wandb").glob("offline-run-*"))


def test_wandb_that_is_switched_off_leaves_nothing(tmp_path: Path) -> None:
    done, folder = offline(tmp_path, "disabled")
    assert done.returncode == 0, done.stderr
    assert "where None" in done.stdout and not list((folder / "wandb").glob("*run-*"))
    assert list((tmp_path / "tmpdir").iterdir()) == []


def test_wandb_that_must_be_online_without_a_key_is_refused(tmp_path: Path) -> None:
    done, _ = offline(tmp_path, "online")
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert "conf/tracking/wandb.yaml: mode is online, and there is no API key; run `wandb login`" in said


@pytest.mark.parametrize(
    ("wanted", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k" * 40}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "/token"}, "online"),
        ("online", {"WANDB_API_KEY": "k" * 40}, "online"),
        ("offline", {"WANDB_API_KEY": "k" * 40}, "offline"),
        ("disabled", {}, "disabled"),
    ],
)
def test_the_mode_follows_the_key(tmp_path: Path, wanted: str, environment: dict[str, str], mode: str) -> None:
    from agents.tracking_wandb import choose_mode

    assert choose_mode(wanted, {"HOME": str(tmp_path), **environment}) == mode


@pytest.mark.parametrize(
    ("content", "base", "found"),
    [
        ("machine api.wandb.ai login user password secret\n", None, True),
        ("machine elsewhere.org login user password secret\n", None, False),
        ("machine wandb.example.org login user password secret\n", "https://wandb.example.org", True),
        ("machine api.wandb.ai login user password secret\n", "https://wandb.example.org", False),
        ("machine machine machine\n", None, False),
        ("", None, False),
    ],
)
def test_a_key_in_the_netrc_file_is_found(tmp_path: Path, content: str, base: str | None, found: bool) -> None:
    from agents.tracking_wandb import has_key

    (tmp_path / ".netrc").write_text(content)
    (tmp_path / ".netrc").chmod(0o600)
    environment = {"HOME": str(tmp_path)} | ({"WANDB_BASE_URL": base} if base else {})
    assert has_key(environment) is found
    (tmp_path / ".netrc").rename(tmp_path / "other")
    assert has_key(environment) is False
    assert has_key(environment | {"NETRC": str(tmp_path / "other")}) is found


def test_wandb_is_imported_only_when_it_is_chosen(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from agents.settings import LocalTracking
        from agents.tracking import open_tracker
        from agents.provenance import Source
        from agents.tracking import Run
        open_tracker(LocalTracking("csv"), Path({str(tmp_path)!r}), Run("a", "b", "c", (), {{}}, Source(None, False), None))
        heavy = {{"wandb", "torch", "tensorboard", "numba", "stable_baselines3"}} & set(sys.modules)
        assert not heavy, heavy
    """)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


WANDB: dict[str, Any] = {"name": "wandb", "project": "p", "entity": None, "mode": "auto", "group": None, "tags": []}


def test_tracking_is_read_by_its_name() -> None:
    assert read_tracking(WANDB, "x") == Wandb("wandb", "p", None, "auto", None, [])
    assert read_tracking({"name": "csv"}, "x") == LocalTracking("csv")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            WANDB | {"mode": "onlin"},
            "x: mode must be one of auto, online, offline, disabled, shared, got 'onlin'; did you mean online?",
        ),
        (WANDB | {"tags": "a"}, "x: tags must be a list, each item text, got 'a'"),
        ({"name": "wandbb"}, "x: name is 'wandbb'; did you mean wandb?"),
        ({"name": "csv", "path": "a"}, "x: path is not a setting; choose from name"),
        ({}, "x: name is missing; it must be one of wandb, tensorboard, csv, none"),
        ("csv", "x: must be a mapping, got 'csv'"),
    ],
)
def test_a_slip_in_tracking_is_named(values: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_tracking(values, "x")
    assert str(caught.value) == said


def test_a_slip_in_agents_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        read_agents({"name": "fixed", "accept": 5, "forward": 0, "commit": 0}, "conf/agents/fixed.yaml")
    assert str(caught.value) == "conf/agents/fixed.yaml: accept must be an integer in [0, 4], got 5"


def test_the_source_is_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    assert source(tmp_path) == Source(None, dirty=False)

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "rule.py").write_text("a = 1\n")
    git("add", "rule.py")
    git("commit", "-m", "First")
    clean = source(tmp_path)
    assert clean.commit is not None and len(clean.commit) == 40 and not clean.dirty
    (tmp_path / "rule.py").write_text("a = 2\n")
    assert source(tmp_path) == Source(clean.commit, dirty=True)


def test_code_inside_another_project_has_no_commit_of_its_own(tmp_path: Path) -> None:
    subprocess.run(["git", "init"], cwd=tmp_path, check=True, capture_output=True)
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert source(inside) == Source(None, dirty=False)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.source() == Source(None, dirty=False)


def test_a_run_can_be_written_as_json() -> None:
    assert json.loads(json.dumps(dict(RUN.config))) == RUN.config
