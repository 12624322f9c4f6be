"""Rounding of weights, Hadamard matrices, and rewritings that change nothing but where numbers stand."""

import copy

import pytest
import torch

import seriatim as sq
from seriatim.compress.hadamard import Rotation, hadamard
from seriatim.compress.layers import QuantizedConv, QuantizedEmbedding, Quantizer
from seriatim.compress.rearranging import Arrangement, rearrange, sort_and_cluster
from seriatim.compress.rotating import can_rotate, rotate, untie
from seriatim.compress.rounding import group_of, round_weight
from seriatim.compress.schemes import SCHEMES
from seriatim.models.language_model import LanguageModel
from seriatim.ops.quantized_linear import unpack_nibbles


def widened(found, bits, size, group):
    if bits == 8:
        return found.weight.double() * found.scale.double()[:, None]
    scale = found.scale.double().repeat_interleave(group, 1)[:, :size]
    return unpack_nibbles(found.weight, size, torch.float64) * scale


@pytest.mark.parametrize("size", [1, 16, 100, 200])
def test_rounding_is_off_by_half_a_step_at_most(size):
    weight = torch.randn(5, size) * torch.logspace(-3, 3, 5)[:, None]
    found = round_weight(weight, 8, size)
    off = (widened(found, 8, size, size) - weight).abs()
    assert (off <= found.scale.double()[:, None] * 0.5001).all()
    group = group_of(size, 64)
    found = round_weight(weight, 4, group)
    wide = found.scale.double().repeat_interleave(group, 1)[:, :size]
    inside = weight < 7.5 * wide  # the largest of a group may be cut at 7 steps
    off = (widened(found, 4, size, group) - weight).abs()
    assert (off[inside] <= wide[inside] * 0.55).all()
    assert (off <= wide * 1.05).all()


def test_a_row_of_zeros_stays_one():
    for bits in (4, 8):
        assert (widened(round_weight(torch.zeros(2, 32), bits, 32), bits, 32, 32) == 0).all()


def test_moments_make_the_products_better():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=generator) @ torch.randn(
        64, 64, generator=generator
    )  # features that go together
    weight = torch.randn(16, 64, generator=generator)
    moments = x.mT @ x / len(x)
    wanted, errors = x.double() @ weight.double().mT, []
    for given in (None, moments):
        rounded = widened(round_weight(weight, 4, 64, given), 4, 64, 64)
        errors.append((x.double() @ rounded.mT - wanted).square().mean().item())
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 36, 44, 48, 64, 384, 6, 10, 680])
def test_rotations_are_orthogonal(size):
    turn = hadamard(size)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    x = torch.randn(3, 2, size, dtype=torch.float64)
    torch.testing.assert_close(Rotation(size)(x), x @ turn, rtol=0, atol=1e-6)
    if size % 4 == 0 and size != 680:  # where such a matrix is known
        assert (turn.abs() - size**-0.5).abs().max() < 1e-12


def test_a_quantiser_rounds_to_the_nearest_multiple():
    quantiser = Quantizer()
    quantiser.open()
    quantiser(torch.tensor([[-2.54, 1.0, 0.3]]))
    quantiser.close()
    torch.testing.assert_close(quantiser.scale, torch.tensor([0.02]))
    found = quantiser(torch.tensor([0.031, -0.031, 5.0, -5.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.04, -0.04, 2.54, -2.54, 0.0]))


def test_a_group_of_channels_shares_the_largest_scale():
    quantiser = Quantizer(3)
    quantiser.open()
    quantiser(torch.tensor([[[1.27, -2.54, 0.127]]]))
    quantiser(torch.tensor([[[0.1, 0.1, -1.27]]]))
    quantiser.close(torch.tensor([0, 0, 1]))
    torch.testing.assert_close(quantiser.scale, torch.tensor([0.02, 0.02, 0.01]))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_embeddings_and_convolutions_are_near_what_they_were(scheme):
    table, bits = torch.randn(11, 40), SCHEMES[scheme]
    embedding = QuantizedEmbedding(11, 40, bits)
    embedding.fill(table)
    off = embedding(torch.arange(11).view(1, 11)) - table
    assert off.abs().max() < table.abs().max() / (100 if bits.weights == 8 else 6)
    kernel, bias = torch.randn(40, 4), torch.randn(40)
    conv = QuantizedConv(40, 4, bias=True)
    conv.fill(kernel, bias)
    x = torch.randn(2, 9, 40)
    wanted, _ = sq.ops.short_conv(x, kernel, bias)
    assert (conv(x, torch.zeros(2, 3, 40), None, None)[0] - wanted).abs().max() < 0.1


def model(**options):
    torch.manual_seed(0)
    found = LanguageModel(
        19, 24, ["mamba", {"mixer": "mamba2", "state_size": 8, "head_dim": 6, "bias": True}], **options
    )
    for parameter in found.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found.double().eval()


@pytest.mark.parametrize("feed_forward", ["swiglu", "gelu", "none"])
def test_a_rotated_model_computes_what_it_did(feed_forward):
    ours = model(feed_forward=feed_forward)
    tokens = torch.randint(0, 19, (3, 20))
    wanted, _ = ours(tokens)
    assert can_rotate(ours)
    untie(ours)
    rotate(ours)
    torch.testing.assert_close(ours(tokens)[0], wanted, rtol=0, atol=1e-10)
    assert (ours.out_norm.weight == 1).all()


def test_what_cannot_be_rotated_is_known():
    assert not can_rotate(model(norm="layer"))
    assert not can_rotate(model(feed_forward="moe"))
    assert not can_rotate(LanguageModel(19, 24, ["mamba2", "gru"]))
    assert not can_rotate(LanguageModel(19, 24, ["mamba2"], ngram_heads=[1]))


OPTIONS = [
    {},
    {"groups": 2},
    {"groups": 2, "norm_groups": 6},
    {"norm_groups": 12},
    {"bias": True, "conv_bias": False, "norm_before_gate": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_rearranged_mixer_computes_what_it_did(options):
    torch.manual_seed(0)
    mixer = sq.build("mamba2", dim=24, head_dim=8, state_size=5, **options).double()
    for parameter in mixer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, 15, 24, dtype=torch.float64)
    wanted, _ = mixer(x)
    sizes = torch.rand(mixer.inner)
    found = sort_and_cluster(sizes, mixer)
    assert sorted(found.channels.tolist()) == list(range(mixer.inner))
    assert sorted(found.heads.tolist()) == list(range(mixer.heads))
    changed = copy.deepcopy(mixer)
    rearrange(changed, found)
    torch.testing.assert_close(changed(x)[0], wanted, rtol=0, atol=1e-12)
    moved = found.channels.tolist() != list(range(mixer.inner))
    assert moved == (options.get("norm_groups") != 12)


def test_clusters_are_of_heads_that_look_alike_and_of_channels_that_are_about_as_large():
    mixer = sq.build("mamba2", dim=32, head_dim=8, state_size=4)
    flat, steep = torch.full((8,), 3.0), torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 9.0, 9.0])
    kinds = [flat, steep, flat, steep, 5 * flat, steep, flat, 2 * steep]
    sizes = torch.stack([kind[torch.randperm(8)] for kind in kinds])
    found = sort_and_cluster(sizes.flatten() * (1 + 1e-3 * torch.rand(64)), mixer)
    assert isinstance(found, Arrangement)
    order = sizes.flatten()[found.channels].view(8, 8)
    assert (order.diff(dim=1) > -0.1).all()
    for cluster in found.clusters.unique():
        members = found.clusters == cluster
        heads = {int(channel) // 8 % 2 if int(channel) // 8 not in (4,) else 0 for channel in found.channels[members]}
        assert len(heads) == 1  # flat ones are the even heads
        inside = sizes.flatten()[found.channels[members]]
        if heads == {1}:
            assert inside.max() / inside.min() < 2.1
