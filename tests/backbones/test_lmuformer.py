"""LMUFormer, its spiking form, and the layers that they are made of."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agreement import assert_close, gradients, normal
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.nn.batch_norm import BatchNorm
from seriatim.nn.causal_conv import CausalConv

NAMES = ["lmuformer", "spiking_lmuformer"]


def test_batch_norm_is_torchs_on_real_tokens():
    x, lengths = normal(0, 3, 7, 5), torch.tensor([7, 0, 3])
    real = torch.arange(7) < lengths[:, None]
    ours, theirs = BatchNorm(5).double(), nn.BatchNorm1d(5).double()
    found, wanted = ours(x * 3 + 1, real), theirs((x * 3 + 1)[real])
    assert_close([found[real]], [wanted], 1e-12, "value")
    assert not found[~real].any()
    assert_close([ours.mean, ours.variance], [theirs.running_mean, theirs.running_var], 1e-12, "average")
    found, wanted = ours(x), theirs(x.flatten(0, 1)).view(x.shape)
    assert_close([found], [wanted], 1e-12, "value")
    assert_close(gradients(found, [x]), gradients(wanted, [x]), 1e-10, "gradient")
    assert_close([ours.eval()(x)], [theirs.eval()(x.flatten(0, 1)).view(x.shape)], 1e-12, "value in evaluation")


def test_batch_norm_of_one_token_uses_its_averages():
    norm = BatchNorm(3)
    x = torch.randn(1, 1, 3)
    assert_close([norm(x)], [x], 1e-4, "value")
    assert not norm.mean.any()


def test_a_causal_convolution_is_torchs_padded_on_the_left():
    torch.manual_seed(0)
    conv, x = CausalConv(4, 6, 3).double(), normal(0, 2, 9, 4)
    state = normal(1, 2, 2, 4)
    found, tail = conv(x, state)
    both = torch.cat([state, x], 1)
    wanted = F.conv1d(both.mT, conv.weight).mT
    assert_close([found, tail], [wanted, both[:, -2:]], 1e-12, "value")


@pytest.mark.parametrize("name", NAMES)
def test_training_is_blind_to_the_padding(name):
    torch.manual_seed(0)
    model = build(name, dim=6, window=9.0, convs=2).double()
    x, lengths = normal(0, 3, 12, 6).detach(), torch.tensor([12, 4, 0])
    other = x.clone()
    other[1, 4:] = other[2] = float("nan")
    y, z = model(x, lengths=lengths)[0], model(other, lengths=lengths)[0]
    assert_close([z[0], z[1, :4]], [y[0], y[1, :4]], 1e-12, "value")


@torch.no_grad()
def test_weights_of_the_spiking_form_read_spikes_and_so_does_who_reads_it():
    torch.manual_seed(0)
    model = build("spiking_lmuformer", dim=16, layers=2, window=20.0)
    read = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | CausalConv) and name not in ("embed.0", "blocks.0.out", "blocks.1.out"):
            module.register_forward_pre_hook(lambda _, given, name=name: read.__setitem__(name, given[0]))
    y, _ = model(torch.randn(4, 50, 16))
    assert len(read) == 3 + 1 + 2 * 4
    for name, spikes in [*read.items(), ("the output", y)]:
        assert ((spikes == 0) | (spikes == 1)).all(), name
        assert 0 < spikes.mean() < 0.5, name


@pytest.mark.parametrize("name", NAMES)
def test_begins_as_the_official_code(name):
    torch.manual_seed(0)
    model = build(name, dim=256)
    block = model.blocks[0]
    lmu = block.lmu if name == "lmuformer" else block
    read = lmu.memory if name == "lmuformer" else lmu.read
    assert abs(read.weight.std() - 0.02) < 1e-3
    assert abs(model.embed[0].weight.std() - (1 / 3 / (256 * 3)) ** 0.5) < 1e-3
    order = lmu.delay.order if name == "lmuformer" else lmu.memory.order
    assert order == (256 if name == "lmuformer" else 512)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers is 0; it must be a whole number"),
        ({"convs": 0}, "convs is 0; it must be a whole number"),
        ({"conv_size": 0}, "conv_size is 0; it must be a whole number"),
        ({"order": -1}, "order is -1; it must be a whole number"),
        ({"window": -2.0}, "window is -2.0; it must be a finite number"),
    ],
)
def test_a_wrong_option_is_named(name, options, message):
    with pytest.raises(SeriatimError, match=message):
        build(name, dim=6, **options)
