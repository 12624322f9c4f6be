"""Quantised models: near the original, small, and on the contract."""

import json

import pytest
import torch

import seriatim as sq
from seriatim.compress.quantize import bytes_of, quantize
from seriatim.compress.quantized import Quantized
from seriatim.core.build import build, spec
from seriatim.core.errors import SeriatimError
from seriatim.core.stepping import _engines
from seriatim.kernels.cpu.step.engine import _agree, _agree_in_the_mean
from seriatim.models.language_model import LanguageModel
from seriatim.nn.cross_entropy import cross_entropy
from seriatim.train.weights import load_weights, weights

LAYERS = {
    "mamba": ["mamba", {"mixer": "mamba", "eigenvalues": "signed", "select_norm": "rms"}],
    "mamba2": ["mamba2", {"mixer": "mamba2", "groups": 2, "state_size": 8, "head_dim": 16, "bias": True}],
    "hybrid": ["mamba2", {"mixer": "gla", "heads": 2}, "mamba"],
}
CHECKS = [
    *("step_layout", "chunk_outputs", "chunk_states", "step_outputs", "step_states", "causal_outputs"),
    *("reset_at_first_token", "reset_in_mid_chunk", "reset_states", "reset_in_pieces"),
    *("padding_outputs", "padding_states", "lengths_zero", "lengths_full", "rewind_forgets"),
    *("state_forks", "state_joins", "state_size", "state_untouched", "state_loads", "rows_independent"),
    *("copies", "pickles", "state_dict_round_trip", "no_rows", "no_tokens", "refuses_state"),
]
MOST = {"w8a8": 0.02, "w4a8": 0.12, "w4a16": 0.12}  # how much larger the perplexity may be here


def sentences(seed, rows=8, time=64):
    """Text of a little grammar, as batches: what follows a token is one of three, the second depending on the first."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 32, (rows, time + 1), generator=generator)
    for t in range(1, time + 1):
        tokens[:, t] = (3 * tokens[:, t - 1] + 5 + 7 * torch.randint(0, 2, (rows,), generator=generator)) % 32
    return tokens[:, :-1], tokens[:, 1:], None


BATCHES = [sentences(seed) for seed in range(1000, 1004)]


def perplexity(model):
    with torch.no_grad():
        tokens, targets, _ = sentences(2000, 32)
        return cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten()).div(targets.numel()).exp().item()


@pytest.fixture(scope="module", params=LAYERS)
def trained(request):
    torch.manual_seed(0)
    model = LanguageModel(32, 32, LAYERS[request.param], feed_forward="swiglu" if request.param == "hybrid" else "none")
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(60):
        tokens, targets, _ = sentences(step)
        loss = cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten()) / targets.numel()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    assert perplexity(model) < 4
    return model


@pytest.mark.parametrize("scheme", MOST)
def test_a_quantised_model_predicts_as_well_and_is_small(trained, scheme):
    before = {name: z.clone() for name, z in trained.state_dict().items()}
    found = quantize(trained, scheme, BATCHES)
    assert all(torch.equal(z, before[name]) for name, z in trained.state_dict().items())
    assert perplexity(found) < (1 + MOST[scheme]) * perplexity(trained)
    if not any("gla" in str(layer) for layer in trained.layers):
        assert bytes_of(trained) / bytes_of(found) > (2.5 if scheme == "w8a8" else 3.5)
    assert not any(z.requires_grad for z in found.parameters())


@pytest.mark.parametrize("scheme", MOST)
def test_it_is_rebuilt_from_its_spec_and_weights(trained, scheme):
    found = quantize(trained, scheme, BATCHES)
    again = build(json.loads(json.dumps(spec(found)))).eval()
    assert isinstance(again, Quantized)
    load_weights(again, weights(found), "the test")
    tokens = sentences(3000)[0]
    assert torch.equal(again(tokens)[0], found(tokens)[0])


@pytest.mark.parametrize(
    ("trained", "scheme"),
    [("mamba", "w8a8"), ("mamba", "w4a16"), ("mamba2", "w8a8"), ("mamba2", "w4a8")],
    indirect=["trained"],
)
def test_it_obeys_the_contract(trained, scheme):
    found = quantize(trained, scheme, BATCHES)
    sq.testing.check_mixer(found, reference=lambda m, x: m(x)[0], only=CHECKS, jitter=0.0)


@pytest.mark.parametrize("scheme", MOST)
def test_its_step_is_a_program_that_computes_what_the_model_does(trained, scheme):
    found = quantize(trained, scheme, BATCHES)
    tokens, state = sentences(3000)[0], found.init_state(8)
    with torch.no_grad(), sq.ops.backend("cpu"):
        wanted, out = found(tokens)[0], []
        for token in tokens.unbind(1):
            y, state = found.step(token, state)
            out.append(y)
    assert [known.program is not None for known in _engines[0]._known[found].programs] == [True]
    off = (torch.stack(out, 1) - wanted).square().mean().sqrt() / wanted.std()
    assert off < (1e-5 if scheme == "w4a16" else 2e-2)  # a number between two whole ones may be rounded to either


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(SeriatimError, match="scheme is 'w3a3'; it must be one of "):
        quantize(LanguageModel(9, 8, ["mamba"]), "w3a3", BATCHES)
    with pytest.raises(SeriatimError, match="at least one must be mamba or mamba2"):
        quantize(LanguageModel(9, 8, ["gla"]), "w8a8", BATCHES)
    with pytest.raises(SeriatimError, match=r"layers\[0\]: heads is 2; it must be 1"):
        quantize(LanguageModel(9, 8, [{"mixer": "mamba", "heads": 2}]), "w8a8", BATCHES)
    with pytest.raises(SeriatimError, match="batches is empty"):
        quantize(LanguageModel(32, 32, ["mamba"]), "w4a16", [])
    with pytest.raises(SeriatimError, match="only a language_model can be quantised"):
        Quantized({"model": "classifier", "classes": 2, "channels": 1, "dim": 8, "layers": ["mamba"]}, "w8a8")


@pytest.mark.parametrize("scheme", MOST)
def test_a_program_may_differ_by_what_rounding_makes_of_a_little_where_it_rounds(trained, scheme):
    found = quantize(trained, scheme, BATCHES)
    with torch.no_grad(), sq.ops.backend("cpu"):
        found.step(torch.tensor([3]), found.init_state(1))
    (known,) = _engines[0]._known[found].programs
    assert known.program.rounds == (scheme != "w4a16")
    wanted = torch.randn(100)
    assert _agree_in_the_mean(wanted * 1.05, wanted)
    assert not _agree(wanted * 1.05, wanted)
    assert not _agree_in_the_mean(wanted.flip(0), wanted)
    assert not _agree_in_the_mean(torch.zeros(100), wanted)
