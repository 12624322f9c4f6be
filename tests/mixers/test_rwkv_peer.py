"""RWKV-6 and RWKV-7 beside their authors' package, with its weights."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from agreement import assert_close
from seriatim.core.build import build

DIM, HEADS, TIME = 24, 3, 60
WIDTH = DIM // HEADS


@pytest.fixture
def peer(monkeypatch):
    """The package's module for a version, as plain PyTorch. What it sets for all of PyTorch is undone in the end."""
    pytest.importorskip("rwkv", reason="the peer: pip install 'seriatim[bench]'")

    def module(version):
        for name, value in (("JIT", "0"), ("CUDA", "0"), ("V7", "1" if version == 7 else "0")):
            monkeypatch.setenv(f"RWKV_{name}_ON", value)
        return importlib.reload(importlib.import_module("rwkv.model"))

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield module
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def mixed(name):
    """A mixer with every weight away from where it begins, and what it reads."""
    torch.manual_seed(0)
    m = build(name, dim=DIM, heads=HEADS, layers=3)
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return m, torch.randn(TIME, DIM)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_rwkv7_equals_its_authors(peer):
    module, (m, x) = peer(7), mixed("rwkv7")
    networks = [
        (bias, network.down.weight.T, network.up.weight.T)
        for bias, network in ((m.decay, m.decay_network), (m.rate, m.rate_network))
    ]
    gate, none = m.gate_network, torch.zeros(0)
    receptance, decay, key, value, rate, gating = m.mixes
    wanted, last, memory, _ = module.RWKV_x070_TMix_seq(
        0, HEADS, WIDTH, x, torch.zeros(DIM), none, torch.zeros(HEADS, WIDTH, WIDTH),
        receptance, decay, key, value, rate, gating, *networks[0], *networks[1], none, none, none,
        gate.down.weight.T, gate.up.weight.T, m.removal, m.replacement, m.bonus,
        m.receptance.weight.T, m.key.weight.T, m.value.weight.T, m.out.weight.T, m.norm_weight, m.norm_bias,
    )  # fmt: skip
    assert wanted.abs().mean() > 0.1
    y, state = m(x[None])
    assert_close([y[0], state.memory[0].mT, state.last[0]], [wanted, memory, last], 3e-6, "value")


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_rwkv6_equals_its_authors(peer):
    module, (m, x) = peer(6), mixed("rwkv6")
    ones, zeros = torch.ones(DIM), torch.zeros(DIM)
    found, last, memory = module.RWKV.att_seq_v6_0(
        None, x, zeros, torch.zeros(HEADS, WIDTH, WIDTH), ones, zeros, m.norm_weight, m.norm_bias,
        m.mix_all, *m.mix_each, m.mix_down.weight.T, m.mix_up, m.decay_down.weight.T, m.decay_up.weight.T,
        m.decay.view(HEADS, WIDTH, 1), m.bonus.view(HEADS, WIDTH, 1),
        m.key.weight.T, m.value.weight.T, m.receptance.weight.T, m.gate.weight.T, m.out.weight.T, *[None] * 20,
    )  # fmt: skip
    wanted = found - x  # the package has the norm before, and the sum behind, in one function
    assert wanted.abs().mean() > 0.1
    y, state = m(F.layer_norm(x, (DIM,))[None])
    assert_close([y[0], state.memory[0], state.last[0]], [wanted, memory, last], 3e-6, "value")
