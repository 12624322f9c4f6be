from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seriatim import build
from seriatim.core.errors import SeriatimError
from seriatim.core.prompts import expect_prompt
from seriatim.objectives.prefix_lm import prefix_lm

MASK = 10


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor
    reset: Tensor | None = None


@pytest.fixture
def model():
    return build("language_model", vocab_size=11, dim=8, layers=[{"mixer": "prefix_linear", "heads": 2}]).double()


@pytest.fixture
def batch():
    text = torch.randint(10, (3, 21))
    return Batch(text[:, :-1], text[:, 1:].clone())


def draw(seed=5):
    return torch.Generator().manual_seed(seed)


def by_hand(model, batch, prompt, masked):
    """(following, filled), mean losses of what follows the prompt and of its hidden tokens."""
    hidden = torch.rand(3, prompt, generator=draw()) < masked
    shown = batch.tokens.clone()
    shown[:, :prompt][hidden] = MASK
    log_p = model(shown, expect_prompt(model.init_state(3), prompt))[0].log_softmax(-1)
    filled = [-log_p[b, t, batch.tokens[b, t]] for b in range(3) for t in range(prompt) if hidden[b, t]]
    following = [
        -log_p[b, t, batch.targets[b, t]] for b in range(3) for t in range(prompt, 20) if batch.targets[b, t] != -100
    ]
    return torch.stack(following).mean().item(), torch.stack(filled).mean().item()


def test_it_is_the_weighted_mean_of_both_losses(model, batch):
    batch.targets[1, 15:] = -100
    following, filled = by_hand(model, batch, 12, 0.4)
    options = {"prompt": 12, "mask_id": MASK, "masked": 0.4}
    loss, state = prefix_lm(model, batch, **options, generator=draw())
    assert loss.item() == pytest.approx((following + 0.25 * filled) / 1.25, rel=1e-5)
    loss, _ = prefix_lm(model, batch, **options, next_weight=1.0, masked_weight=3.0, generator=draw())
    assert loss.item() == pytest.approx((following + 3 * filled) / 4, rel=1e-5)
    assert state[0].prompt.tolist() == [0, 0, 0]


def test_a_row_that_begins_a_document_has_its_prompt(model, batch):
    reset = torch.zeros(3, 20, dtype=torch.bool)
    reset[:, 0] = True
    losses = [
        prefix_lm(model, each, prompt=12, mask_id=MASK, generator=draw())[0]
        for each in (batch, batch._replace(reset=reset))
    ]
    assert losses[0].item() == losses[1].item()
    assert reset[:, 0].all()


def test_it_teaches_every_weight(model, batch):
    prefix_lm(model, batch, prompt=12, mask_id=MASK, generator=draw())[0].backward()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 20}, "prompt is 20; it must be below the batch's 20 tokens"),
        ({"prompt": 0}, "prompt is 0"),
        ({"masked": 1.0}, "masked is 1.0"),
        ({"masked_weight": 0.0}, "masked_weight is 0.0"),
    ],
)
def test_wrong_options_are_refused(model, batch, options, message):
    with pytest.raises(SeriatimError, match=message):
        prefix_lm(model, batch, **{"prompt": 12, "mask_id": MASK, **options})
