"""A name stands for one policy wherever it is read, and a slip in it is told without loading any."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.card import PolicyError
from agents.names import FOLDER, HOUSE, KINDS, find, folder_of
from agents.policy import LevelsPolicy, OnnxPolicy, load
from compose import compose
from plan import check
from settings import SettingsError

SLIP = """
import sys
from compose import compose
from plan import check
from settings import SettingsError

try:
    composed = compose(["agents=league", "agents.league.pool=[papr,ppo_wwwserve,central,fixed:5-0-0]", "agents.start=nobody"])
    check(composed.values, composed.files)
except SettingsError as error:
    print(len(error.slips), *(name for name in ("onnxruntime", "torch", "stable_baselines3") if name in sys.modules))
"""


def test_a_league_with_slips_is_refused_without_loading_what_reads_policies() -> None:
    done = subprocess.run([sys.executable, "-c", SLIP], cwd=HOUSE, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4"], done.stdout


def slips(*words: str) -> list[str]:
    composed = compose(["agents=league", *words])
    with pytest.raises(SettingsError) as refused:
        check(composed.values, composed.files)
    return [f"{slip.key} {slip.rule}" for slip in refused.value.slips]


def test_each_slip_of_a_pool_is_told_with_its_place_and_reason() -> None:
    found = slips("agents.league.pool=[papr,paper,central,'fixed:5-0-0',fixed]")
    assert [text.split()[0] for text in found] == ["league.pool[0]", "league.pool[2]", "league.pool[3]", "league.pool[4]"]
    assert "did you mean paper?" in found[0] and "a scheduler in place of the market" in found[1]
    assert all("must be fixed:ACCEPT-FORWARD-COMMIT with levels in [0, 4]" in text for text in found[2:])


def test_a_pool_with_a_damaged_card_is_refused_by_what_is_wrong_with_it(write_folder: Callable[..., Path]) -> None:
    folder = write_folder()
    card = folder / "card.yaml"
    card.write_text(card.read_text().replace("format: 1", "format: 99"))
    (found,) = slips(f"agents.league.pool=[{folder}]")
    assert "format" in found and "99" in found


@pytest.mark.parametrize("name", KINDS)
def test_a_policy_without_a_file_is_loaded_as_its_name_says(name: str) -> None:
    found, policy = find(name), load(name)
    assert (found.brain, found.dispatch) == (policy.brain, policy.dispatch) == KINDS[name]
    assert found.levels is None and found.folder is None is folder_of(name)


@pytest.mark.parametrize("text", ["fixed:3-0-4", "fixed:3,0,4", "fixed: 3, 0, 4"])
def test_levels_are_read_with_dashes_or_commas(text: str) -> None:
    assert find(text).levels == (3, 0, 4)
    policy = load(text).policy
    assert isinstance(policy, LevelsPolicy) and policy.levels == (3, 0, 4)


@pytest.mark.parametrize(
    "text", ["fixed", "fixed:", "fixed:1-2", "fixed:1-2-3-4", "fixed:1-2-5", "fixed:a-b-c", "fixed:1--2", "fixedly"]
)
def test_levels_that_are_none_are_refused_alike_by_whoever_reads_them(text: str) -> None:
    for reader in (find, load):
        with pytest.raises(PolicyError, match="must be fixed:ACCEPT-FORWARD-COMMIT with levels in"):
            reader(text)


def test_a_folder_is_found_by_its_path_then_by_its_name_here_then_among_those_that_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "ppo_wwwserve"
    assert folder_of(name) == HOUSE / FOLDER / name
    (tmp_path / FOLDER / name).mkdir(parents=True)
    assert folder_of(name) == Path(FOLDER) / name
    (tmp_path / name).mkdir()
    assert folder_of(name) == Path(name)
    assert folder_of("nobody") is None
    with pytest.raises(PolicyError, match="there is no pp_wwwserve; "):
        find("pp_wwwserve")


def test_a_shipped_policy_is_found_and_loaded_by_the_same_name() -> None:
    found, policy = find("ppo_wwwserve"), load("ppo_wwwserve").policy
    assert isinstance(policy, OnnxPolicy) and found.folder == policy.folder
