"""Pictures and tables of the market."""

import time

import numpy as np
import pytest

from envs.wwwserve.picture import BAD, GOOD, PAPER, draw
from envs.wwwserve.render import Renderer, text
from envs.wwwserve.scene import Course, Scene
from tests.envs.wwwserve.play import Players, make


def course_of(name: str, steps: int, network: int = 0) -> Course:
    batch = make(name, networks=network + 1, seed=3, autoreset=False)
    course, players = Course(batch, network), Players(network + 1)
    for _ in range(steps):
        batch.step(players.act(batch.masks))
        course.note()
    return course


def test_a_scene_is_the_truth_of_one_network() -> None:
    course = course_of("wwwserve", 60, network=1)
    scene = course.scene()
    batch = course.batch
    assert scene.now_s == 300.0 and scene.horizon_s == 900.0 and scene.title == "wwwserve"
    assert (scene.credits["wealth"] == batch.accounts()["wealth"][1]).all()
    assert scene.flows.sum() > 0 and not scene.flows.diagonal().any()
    assert scene.running.sum() + scene.waiting.sum() > 0 and (scene.load <= 1).all()
    due = scene.attainment[~np.isnan(scene.attainment)]
    assert ((due >= 0) & (due <= 1)).all() and due.min() <= scene.market_attainment <= due.max()


def test_flows_count_requests_at_peers() -> None:
    scene = course_of("wwwserve", 60).scene()
    assert (scene.flows.sum(axis=1) <= scene.away).all() and (scene.flows.sum(axis=0) <= scene.guests).all()


def test_an_episode_that_starts_anew_is_shown_from_its_start() -> None:
    batch = make("tiny", networks=1, seed=3)
    course, players = Course(batch), Players(1)
    for _ in range(60):
        batch.step(players.act(batch.masks))
        course.note()
    scene = course.scene()
    assert scene.now_s == 0.0 and np.isnan(scene.attainment).all() and np.isnan(scene.market_attainment)


def test_the_text_has_a_row_a_provider_and_fits_a_terminal() -> None:
    words = text(course_of("wwwserve", 30).scene())
    assert all(f"provider_{p}  " in words for p in range(8)) and "wwwserve: 150 of 900 s" in words
    assert max(len(line) for line in words.splitlines()) <= 80 and "\x1b" not in words and "\u2026" not in words
    assert text(course_of("join", 1).scene()).count("offline") == 3


def colour_at(picture: np.ndarray, x: int, y: int) -> tuple[int, ...]:
    return tuple(picture[y, x].tolist())


def scene_of(attainment: list[float], **changes: object) -> Scene:
    scene = course_of("paper-2", 1).scene()
    return scene._replace(attainment=np.array(attainment), load=np.full(4, 0.5, np.float32), **changes)


def test_colour_is_attainment_and_size_is_load() -> None:
    picture = draw(scene_of([0.0, 1.0, 1.0, 1.0]))
    above, right = (300, 352 - 205 + 18), (300 + 205 + 18, 352)
    assert colour_at(picture, *above) == BAD and colour_at(picture, *right) == GOOD
    small = draw(scene_of([0.0, 1.0, 1.0, 1.0])._replace(load=np.zeros(4, np.float32), credits=no_stake()))
    assert colour_at(small, *above) == PAPER


def no_stake() -> dict[str, np.ndarray]:
    return course_of("paper-2", 1).scene().credits | {"stake": np.zeros(4)}


def test_an_arrow_is_drawn_for_a_flow_only() -> None:
    quiet = scene_of([1.0] * 4, flows=np.zeros((4, 4), int))
    busy = scene_of([1.0] * 4, flows=np.eye(4, k=1, dtype=int) * 9)
    changed = (draw(quiet) != draw(busy)).any(axis=2)
    assert 500 < changed.sum() < 20_000


@pytest.mark.parametrize("count", [1, 3, 60])
def test_markets_of_any_size_are_drawn(count: int) -> None:
    scene = course_of("paper-2", 1).scene()
    pick = np.arange(count) % 4
    scene = scene._replace(
        **{
            name: getattr(scene, name)[pick]
            for name in ("online", "load", "kv_usage", "running", "waiting", "guests", "away", "attainment")
        },
        credits={name: values[pick] for name, values in scene.credits.items()},
        flows=np.zeros((count, count), int),
    )
    picture = draw(scene)
    assert picture.shape == (640, 960, 3) and picture.dtype == np.uint8 and picture.std() > 5
    assert len(text(scene).splitlines()) >= count


def test_a_picture_is_fast_enough_for_a_video() -> None:
    scene = course_of("wwwserve", 30).scene()
    draw(scene)
    spent = []
    for _ in range(5):
        start = time.process_time()
        draw(scene)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.1


def test_the_terminal_shows_the_table_and_is_left_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    renderer = Renderer(make("tiny"), "human")
    assert renderer.render() is None
    renderer.note()
    renderer.render()
    renderer.close()
    renderer.close()
    assert "provider_2" in capsys.readouterr().out


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="render_mode must be one of ansi, human, rgb_array or None, got 'depth'"):
        Renderer(make("tiny"), "depth")
