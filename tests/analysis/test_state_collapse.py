"""Statistics of states along a sequence, and the loss at every position."""

import pytest
import torch
from torch import nn

from seriatim import LanguageModel, build
from seriatim.analysis.state_collapse import loss_by_position, state_statistics
from seriatim.core.mixer import Mixer


class Sum(Mixer):
    """Carries the sum of what was read, in two heads, and a number of tokens."""

    def __init__(self, dim=4):
        super().__init__()
        self.dim, self.weight = dim, nn.Parameter(torch.ones(1))

    def init_state(self, batch):
        return self.new_state(batch, 2, self.dim // 2), self.new_state(batch).long()

    def mix(self, x, state, reset, lengths):
        total = state[0] + x.sum(1).unflatten(-1, (2, -1))
        return x, (total, state[1] + x.size(1))


def test_a_states_numbers_are_those_written_by_hand():
    x = torch.ones(1, 6, 4)
    x[..., 2] = -3
    x[..., 3] = 1
    found = state_statistics(Sum(), x, [2, 3, 6], chunk=2)
    assert list(found) == ["0"]  # integers are no part of it
    each = found["0"]
    assert each.positions == (2, 3, 6)
    counts = torch.tensor([2.0, 3.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(each.mean, torch.stack([counts, -counts], 1))
    torch.testing.assert_close(each.variance, torch.stack([0 * counts, 4 * counts**2], 1))
    torch.testing.assert_close(each.largest, torch.stack([counts, 3 * counts], 1))
    torch.testing.assert_close(each.norm, torch.stack([2**0.5 * counts, 10**0.5 * counts], 1))
    torch.testing.assert_close(each.growth(3), torch.tensor([2.0, 2.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="length is 4; the positions are 2, 3, 6"):
        each.growth(4)


@pytest.mark.parametrize("name", ["lstm", "gla", "deltanet", "s4d", "mamba", "mamba2", "rwkv7", "state_window"])
def test_any_constant_state_is_looked_at_where_it_is(name):
    mixer, x = build(name, dim=16).double(), torch.randn(2, 12, 16, dtype=torch.float64)
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[:, 7] = True
    found = state_statistics(mixer, x, [5, 12], reset=reset, chunk=3)
    assert found
    for position, begin in [(5, 0), (12, 7)]:
        alone = state_statistics(mixer, x[:, begin:position], [position - begin])
        for leaf, each in found.items():
            index = each.positions.index(position)
            for ours, theirs in zip(each[1:], alone[leaf][1:], strict=True):
                torch.testing.assert_close(ours[index], theirs[0], rtol=1e-7, atol=1e-7)


def test_a_state_that_never_forgets_grows_and_one_that_does_stops():
    kept, lost = (build("mamba2", dim=8, state_size=4, head_dim=4) for _ in range(2))
    with torch.no_grad():
        kept.decay.A_log.fill_(-20.0)
        lost.decay.A_log.fill_(5.0)
    x = torch.ones(1, 400, 8) * torch.randn(8)
    growth = [state_statistics(mixer, x, [100, 400])["system"].growth(100) for mixer in (kept, lost)]
    assert ((growth[0] > 3.8) & (growth[0] < 4.2)).all()
    assert ((growth[1] > 0.99) & (growth[1] < 1.01)).all()


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_the_loss_of_a_position_is_that_of_the_whole(chunk):
    model = LanguageModel(7, dim=8, layers=["gru", "mamba2"]).double()
    tokens, targets = torch.randint(7, (2, 3, 12))
    targets[:, 4] = -100
    targets[0, 9] = -100
    reset = torch.zeros(3, 12, dtype=torch.bool)
    reset[1, 6] = True
    found = loss_by_position(model, tokens, targets, reset=reset, chunk=chunk)
    chances = model(tokens, reset=reset)[0].log_softmax(-1)
    wanted = [[-chances[b, t, targets[b, t]].item() for b in range(3) if targets[b, t] != -100] for t in range(12)]
    assert found.isnan().nonzero().flatten().tolist() == [4]
    for t in range(12):
        if wanted[t]:
            assert found[t].item() == pytest.approx(sum(wanted[t]) / len(wanted[t]))


def test_what_cannot_be_measured_is_said():
    x, tokens = torch.randn(1, 6, 16), torch.zeros(1, 6, dtype=torch.long)
    for positions in ([], [0, 2], [3, 3], [2, 7]):
        with pytest.raises(ValueError, match="they must rise, from 1 to the 6 tokens of x"):
            state_statistics(build("gla", dim=16), x, positions)
    for mixer in (build("attention", dim=16), build("hydra", dim=16), nn.Linear(16, 16)):
        with pytest.raises(ValueError, match=f"mixer is a {type(mixer).__name__}; it must be a seriatim"):
            state_statistics(mixer, x, [3])
    with pytest.raises(ValueError, match="chunk is 0"):
        state_statistics(build("gla", dim=16), x, [3], chunk=0)
    model = LanguageModel(7, dim=8, layers=["gru"])
    with pytest.raises(ValueError, match=r"targets has shape \(1, 5\); tokens has \(1, 6\)"):
        loss_by_position(model, tokens, tokens[:, 1:])
