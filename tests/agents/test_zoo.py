"""The zoo lists what is shipped, and notices a policy that is not as its card says."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from agents import zoo
from agents.card import CARD_FILE, POLICY_FILE, PolicyError
from agents.names import FOLDER, HOUSE

SHIPPED = HOUSE / FOLDER


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one shipped policy, below the current one."""
    shutil.copytree(SHIPPED / "ppo_wwwserve", tmp_path / FOLDER / "ppo_wwwserve")
    monkeypatch.chdir(tmp_path)
    return tmp_path / FOLDER / "ppo_wwwserve"


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    """Change a card."""
    card = yaml.safe_load((folder / CARD_FILE).read_text())
    change(card)
    (folder / CARD_FILE).write_text(yaml.safe_dump(card))


def test_the_list_names_every_shipped_policy_with_its_score_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["list"]) == 0
    told = capsys.readouterr().out
    for entry in zoo.entries(SHIPPED):
        assert entry.name in told and entry.score is not None and f"{entry.score.point:.3f}" in told
    words = "".join(told.replace("│", " ").split())
    for entry in zoo.entries(SHIPPED):
        made_by = str(entry.card["reproduce"]).split()
        assert all(word in words for word in made_by), "also what looks like a tag, such as a pool of policies in brackets"


def test_the_shipped_generalist_scores_what_its_card_says() -> None:
    (entry,) = [entry for entry in zoo.entries(SHIPPED) if entry.name == "ppo_wwwserve"]
    assert "over 200 episodes" in zoo.verify(entry)


def test_a_card_that_boasts_is_caught(copied: Path) -> None:
    def boast(card: dict) -> None:
        card["scores"]["wwwserve"]["slo_attainment"]["ppo_wwwserve"] = [0.999, 0.998, 0.9995]
        card["seeds"]["evaluation"] = [1_000_000, 5]

    rewrite(copied, boast)
    (entry,) = zoo.entries(copied.parent)
    with pytest.raises(PolicyError, match=r"not the policy, scenario or market of its card; train it again: python train\.py"):
        zoo.verify(entry)


def test_a_card_without_a_score_at_home_is_refused(copied: Path) -> None:
    rewrite(copied, lambda card: card["scores"].clear())
    (entry,) = zoo.entries(copied.parent)
    with pytest.raises(PolicyError, match="has no slo_attainment in wwwserve"):
        zoo.verify(entry)


def test_a_damaged_file_is_told_and_ends_with_1(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / POLICY_FILE).write_bytes(b"cut")
    assert zoo.main(["verify"]) == 1
    assert "is cut off or not the file of its card" in capsys.readouterr().err


def test_a_card_of_another_build_is_told_and_ends_with_1(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(copied, lambda card: card["observation"].update(version=0))
    assert zoo.main(["list"]) == 1
    assert "observation.version is 0" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["lst"], ["list", "ppo_wwwserve"]])
def test_a_slip_shows_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(words) == 2
    assert "python -m agents.zoo verify" in capsys.readouterr().out


def test_an_unknown_policy_is_named_beside_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["verify", "ppo_wwserve"]) == 2
    assert "has no ppo_wwserve; choose from" in capsys.readouterr().err
