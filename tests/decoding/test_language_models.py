"""Generation with every mixer in a language model."""

import pytest
import torch

from seriatim.core.build import names, resolve
from seriatim.decoding.generate import generate
from seriatim.decoding.sampler import Sampler
from seriatim.decoding.session import load_session, save_session
from seriatim.models.language_model import LanguageModel

CLASSES = {name: resolve(name) for name in names()}
MIXERS = [name for name, cls in CLASSES.items() if cls.__module__.startswith("seriatim.mixers") and cls.causal]
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 7, 1, 8], [], [16, 16, 0]]


@pytest.fixture(params=MIXERS)
def model(request):
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=17, dim=16, layers=[request.param], tie_embeddings=False).double().eval()
    for parameter in model.parameters():  # away from the initial weights, under which all tokens look alike
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model


def write(model, prompts, **options):
    generation = generate(model, prompts, **{"tokens": 15, "sampler": Sampler(temperature=0), "begin": 16, **options})
    return [[int(token) for token in row] for row in torch.stack([tokens.ids for tokens in generation], 1)], generation


def test_rows_of_different_lengths_equal_each_alone(model):
    together, _ = write(model, PROMPTS)
    assert together == [write(model, [prompt])[0][0] for prompt in PROMPTS]
    assert len(set(map(tuple, together))) > 1


def test_a_saved_session_goes_on_as_if_never_stopped(model, tmp_path):
    sampler = {"sampler": Sampler()}
    never, _ = write(model, PROMPTS, generator=torch.Generator().manual_seed(1), **sampler)
    first, generation = write(model, PROMPTS, generator=torch.Generator().manual_seed(1), tokens=6, **sampler)
    save_session(generation.session, tmp_path / "state", model)
    session = load_session(tmp_path / "state", model)
    rest, _ = write(model, None, session=session, generator=torch.Generator(), tokens=9, **sampler)
    assert [a + b for a, b in zip(first, rest, strict=True)] == never
