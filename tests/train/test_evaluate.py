from math import log, log2

import pytest
import torch
from tiny_language import documents, new_model
from torch import nn

from seriatim.core.errors import SeriatimError
from seriatim.data.evaluation import EvaluationBatches
from seriatim.data.tokenizer import ByteTokenizer
from seriatim.train.evaluate import evaluate


def batches(batch=2, window=8, **options):
    return EvaluationBatches(documents(), ByteTokenizer(), batch, window, **options)


def bits_of_whole_documents(model):
    """Every document by itself, in one segment."""
    nats = 0.0
    with torch.no_grad():
        for document in documents():
            ids = torch.tensor([[256, *document.data, 256]])
            log_p = model(ids[:, :-1])[0].double().log_softmax(-1)
            nats -= log_p.gather(-1, ids[:, 1:, None]).sum().item()
    return nats / log(2)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary():
    model = new_model()
    nn.init.zeros_(model.head.weight)
    data = batches()
    found = evaluate(model, data)
    assert found["bits_per_token"] == pytest.approx(log2(257), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(log2(257) * data.tokens / data.bytes, rel=1e-6)
    assert data.tokens == data.bytes + len(documents())


@pytest.mark.parametrize(("batch", "window"), [(1, 5), (3, 64), (7, 1000)])
def test_it_does_not_depend_on_the_batches(batch, window):
    model = new_model().eval()
    found = evaluate(model, batches(batch, window))
    assert found["bits_per_byte"] * batches().bytes == pytest.approx(bits_of_whole_documents(model), rel=1e-5)


def test_without_the_state_the_context_is_lost():
    model = new_model().eval()
    carried, alone = (evaluate(model, batches(tokens=400), carry=carry) for carry in (True, False))
    assert abs(carried["bits_per_byte"] - alone["bits_per_byte"]) > 1e-4
    model.constant_state = False
    assert evaluate(model, batches(tokens=400)) == alone
    overlapping = evaluate(model, batches(window=32, overlap=24, tokens=400))
    assert overlapping["bits_per_byte"] == pytest.approx(carried["bits_per_byte"], abs=1e-5)


def test_the_mode_is_put_back_and_nothing_is_learned():
    model = new_model(dropout=0.9)
    assert evaluate(model, batches()) == evaluate(model, batches())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.eval().training
    evaluate(model, batches(tokens=50))
    assert not model.training


def test_carrying_over_an_overlap_is_refused():
    with pytest.raises(SeriatimError, match="overlap by 2"):
        evaluate(new_model(), batches(overlap=2), carry=True)
