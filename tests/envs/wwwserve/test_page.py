"""The page of the environment is what the tables say."""

import pytest

from envs.wwwserve import env, page
from market.observation import OBSERVATION_SIZE, OBSERVATION_TABLE


def test_the_page_in_docs_is_fresh() -> None:
    assert page.FILE.read_text(encoding="utf-8") == page.page(), "run python -m envs.wwwserve.page"


def test_the_docstring_has_the_table_of_actions_and_the_sizes_as_they_are() -> None:
    assert page.action_table() in (env.__doc__ or "")
    assert f"({OBSERVATION_SIZE},)" in (env.__doc__ or "") and f"({OBSERVATION_SIZE} * agents,)" in (env.__doc__ or "")


def test_the_page_names_every_entry_and_heading() -> None:
    text = page.page()
    assert all(f"| `{entry.name}`" in text and entry.meaning in text for entry in OBSERVATION_TABLE)
    headings = ["Actions", "Observations", "Rewards", "Start", "End", "Arguments", "Version history"]
    places = [text.index(f"### {heading}") for heading in headings]
    assert places == sorted(places)


@pytest.mark.parametrize("argument", ["scenario", "market", "actions", "mask", "masked", "max_cycles", "render_mode"])
def test_every_argument_is_told(argument: str) -> None:
    assert f"\n`{argument}`: " in (env.__doc__ or "")
