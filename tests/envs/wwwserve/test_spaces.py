"""Spaces, masks of flat actions, and idling where a mask forbids."""

import numpy as np

from envs.wwwserve.spaces import FLAT_LEVELS, FLAT_SIZE, Levels, flat_masks, idle_where_masked


def some_masks(count: int) -> np.ndarray:
    masks = np.random.default_rng(0).integers(0, 2, (count, 15), np.int8)
    masks[:, [0, 5, 10]] = 1
    return masks


def test_a_flat_action_is_25_accept_5_forward_commit() -> None:
    assert (np.arange(FLAT_SIZE) == FLAT_LEVELS @ [25, 5, 1]).all() and FLAT_LEVELS.max() == 4


def test_a_flat_mask_allows_what_all_three_heads_allow() -> None:
    masks = some_masks(20)
    flat = flat_masks(masks)
    assert flat.shape == (20, 125) and flat.dtype == np.int8
    for row, mask in zip(flat, masks, strict=True):
        for action, (accept, forward, commit) in enumerate(FLAT_LEVELS):
            assert row[action] == mask[accept] * mask[5 + forward] * mask[10 + commit]


def test_a_masked_level_becomes_level_0_and_others_stay() -> None:
    masks = some_masks(50)
    levels = np.random.default_rng(1).integers(0, 5, (50, 3))
    found = idle_where_masked(levels, masks)
    for place in range(50):
        for head in range(3):
            level = levels[place][head]
            assert found[place][head] == (level if masks[place][5 * head + level] else 0)


def test_a_level_out_of_range_stays_to_be_refused() -> None:
    levels = np.array([[-1, 5, 4], [99, 0, -(2**40)]])
    assert (idle_where_masked(levels, np.ones((2, 15), np.int8)) == levels).all()


def test_levels_are_sampled_within_a_mask_as_it_stands_in_an_observation() -> None:
    space = Levels()
    space.seed(3)
    for mask in some_masks(40):
        levels = space.sample(mask)
        assert space.contains(levels) and (mask.reshape(3, 5)[np.arange(3), levels] == 1).all()
    assert space.contains(space.sample()) and space.contains(space.sample(tuple(np.ones((3, 5), np.int8))))
