"""Reading conf/ by name."""

import pytest

from envs.wwwserve import load
from settings import SettingsError


def test_every_shipped_file_is_read() -> None:
    assert {"wwwserve", "tiny", "paper-1", "paper-2", "paper-3", "paper-4"} <= set(load.names("env"))
    assert load.terms().duel_rate == load.terms("paper").duel_rate
    assert set(load.profiles()) == set(load.names("serving"))
    assert set(load.profiles({"cpu_tiny", "no_such"})) == {"cpu_tiny"}


@pytest.mark.parametrize(
    ("group", "name", "words"),
    [
        ("env", "paper-22", r"conf/env: has no paper-22.yaml; did you mean paper-2\?"),
        ("market", "papers", r"conf/market: has no papers.yaml; did you mean paper\?"),
        ("serving", "", r"conf/serving: has no .yaml; choose from"),
        ("env", "../market/paper", "conf/env: has no ../market/paper.yaml"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(group: str, name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load.values(group, name)
