"""Saving and restoring random states."""

from __future__ import annotations

import random

from dp_basicsr.utils.random_state import random_state, same_random_state_after, set_determinism, set_random_state

import numpy as np
import torch


def draw() -> tuple[float, ...]:
    """Numbers of every generator; Gaussian ones are drawn in pairs, and the second belongs to the state."""
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()


def test_every_generator_is_restored() -> None:
    draw()
    torch.save(random_state(), "state")
    expected = [draw(), draw()]
    set_random_state(torch.load("state", weights_only=True))
    assert [draw(), draw()] == expected


def test_random_numbers_drawn_inside_do_not_count() -> None:
    before = random_state()
    with same_random_state_after():
        draw()
    inside = draw()
    set_random_state(before)
    assert draw() == inside


def test_deterministic_can_be_switched() -> None:
    try:
        set_determinism(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
