import torch
from toys import CacheModel, FadingModel

from seriatim.core import state as states
from seriatim.decoding.growth import growth


def test_a_growing_state_is_foreseen_and_a_constant_one_is_constant():
    for model in (FadingModel(), CacheModel()):
        found = growth(model, probe=8)
        for tokens in (0, 5, 100):
            _, state = model(torch.zeros(1, tokens, dtype=torch.long))
            assert found.bytes(tokens) == states.nbytes(state)
    assert growth(FadingModel()).per_token == 0
    assert growth(CacheModel()).per_token == 8
