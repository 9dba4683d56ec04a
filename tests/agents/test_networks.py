"""The critic sees a network whatever the order and number of its providers; levels are drawn as the logits say, under the mask."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.networks import HEADS, Actor, Critic, chosen, draw, log_chances, start_small
from market.action import LEVELS, MASK_SIZE
from market.observation import OBSERVATION_SIZE


def critic(*hidden: int) -> Critic:
    made = Critic(hidden or (16, 16))
    start_small(made, made.value, 1.0, torch.Generator().manual_seed(0))
    return made


def observations(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, OBSERVATION_SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("hidden", [(8,), (16, 16), (16, 8, 4)])
@pytest.mark.parametrize("providers", [1, 3, 8])
def test_values_follow_a_permutation_of_the_providers(hidden: tuple[int, ...], providers: int) -> None:
    seen, order = observations(5, providers), torch.randperm(providers, generator=torch.Generator().manual_seed(2))
    made = critic(*hidden)
    assert made(seen).shape == (5, providers)
    torch.testing.assert_close(made(seen[:, order]), made(seen)[:, order], rtol=0, atol=1e-6)


def test_a_value_depends_on_the_other_providers_and_on_oneself() -> None:
    made, seen = critic(), observations(1, 3)
    for changed in (0, 1):
        other = seen.clone()
        other[0, changed] = 0.0
        assert (made(other)[0, 0] - made(seen)[0, 0]).abs() > 1e-4


def test_equal_networks_have_equal_values_and_equal_providers_too() -> None:
    made, one = critic(), observations(1, 4)
    values = made(one.repeat(3, 1, 1))
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    alike = made(one[:, :1].repeat(1, 4, 1))[0]
    assert torch.equal(alike, alike[:1].expand(4))


def test_the_same_critic_judges_any_number_of_providers_alike_where_all_are_copies() -> None:
    made, one = critic(), observations(1, 1)
    few, many = made(one.repeat(1, 3, 1)), made(one.repeat(1, 300, 1))
    torch.testing.assert_close(few[0, 0], many[0, 0], rtol=0, atol=1e-5)


def test_rescaling_leaves_values_as_they_are_and_scales_what_is_learned() -> None:
    made, seen = critic(), observations(6, 4)
    before = made.values(seen)
    returns = 40 + 7 * torch.randn(1000, generator=torch.Generator().manual_seed(3))
    made.rescale(returns)
    torch.testing.assert_close(made.values(seen), before, rtol=1e-4, atol=1e-3)
    scaled = made.scaled(returns)
    assert abs(float(scaled.mean())) < 1e-4 and float(scaled.std()) == pytest.approx(1, abs=1e-2)
    for _ in range(200):
        made.rescale(torch.tensor([-1.0, 1.0]))
    assert float(made.mean) == pytest.approx(0, abs=1e-2) and float(made.deviation) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(made.values(seen), before, rtol=1e-3, atol=1e-2)


def test_returns_without_spread_do_not_break_the_scale() -> None:
    made = critic()
    made.rescale(torch.full((10,), 3.0))
    assert torch.isfinite(made.values(observations(2, 2))).all() and torch.isfinite(made.scaled(torch.tensor([3.0]))).all()


masks = st.lists(st.lists(st.booleans(), min_size=LEVELS, max_size=LEVELS).filter(any), min_size=HEADS, max_size=HEADS)


@given(mask=masks, scale=st.floats(0, 50), seed=st.integers(0, 1000))
def test_a_forbidden_level_is_never_drawn_and_has_no_chance(mask: list[list[bool]], scale: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(mask).reshape(1, MASK_SIZE).repeat(64, 1)
    logits = scale * torch.randn(64, MASK_SIZE, generator=random)
    levels = draw(logits, allowed, random)
    assert allowed.reshape(64, HEADS, LEVELS).gather(-1, levels[..., None]).all()
    chances = log_chances(logits, allowed).exp()
    assert (chances[~allowed.reshape(64, HEADS, LEVELS)] == 0).all()
    torch.testing.assert_close(chances.sum(-1), torch.ones(64, HEADS))
    entropy = -(chances * log_chances(logits, allowed)).sum((-1, -2))
    assert torch.isfinite(entropy).all() and (entropy >= -1e-5).all()


def test_levels_are_drawn_as_often_as_the_logits_say() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, MASK_SIZE, generator=random)
    allowed = torch.ones(1, MASK_SIZE, dtype=torch.bool)
    allowed[0, [1, 7]] = False
    drawn = draw(logits.repeat(40_000, 1), allowed.repeat(40_000, 1), random)
    expected = log_chances(logits, allowed)[0].exp()
    for head in range(HEADS):
        found = np.bincount(drawn[:, head], minlength=LEVELS) / len(drawn)
        assert np.abs(found - expected[head].numpy()).max() < 0.01


def test_the_chance_of_an_action_is_the_product_over_its_heads() -> None:
    chances = log_chances(torch.randn(4, MASK_SIZE, generator=torch.Generator().manual_seed(5)), torch.ones(4, MASK_SIZE) > 0)
    actions = torch.tensor([[0, 1, 2], [4, 4, 4], [3, 0, 1], [2, 2, 2]])
    for row, action in enumerate(actions):
        expected = sum(chances[row, head, level] for head, level in enumerate(action))
        assert float(chosen(chances, actions)[row]) == pytest.approx(float(expected), abs=1e-6)


def test_an_untrained_actor_is_nearly_even_handed() -> None:
    actor = Actor((16, 16))
    start_small(actor, actor.heads, 0.01, torch.Generator().manual_seed(0))
    chances = log_chances(actor(observations(50)), torch.ones(50, MASK_SIZE) > 0).exp()
    assert (chances - 0.2).abs().max() < 0.02
