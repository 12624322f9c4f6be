"""Prefix linear attention with a prompt; what holds of every mixer with one is in core/test_expect_prompt.py."""

import torch

from seriatim import build
from seriatim.core.prompts import expect_prompt


def test_a_prompt_in_pieces_ends_in_the_same_state():
    mixer, x = build("prefix_linear", dim=8, heads=2, feature_dim=3).double(), torch.randn(3, 13, 8).double()
    _, end = mixer(x, expect_prompt(mixer.init_state(3), 6))
    state = expect_prompt(mixer.init_state(3), 6)
    for piece in x.split((2, 1, 5, 5), 1):
        _, state = mixer(piece, state)
    assert torch.allclose(state.memory, end.memory)
    assert state.prompt.tolist() == [0, 0, 0]
