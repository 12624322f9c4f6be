"""Puts a language model, a corpus and the training loop together."""

from collections.abc import Sequence

from seriatim.core.errors import SeriatimError
from seriatim.core.mixer import Mixer
from seriatim.data.batches import ContiguousBatches, PackedBatches
from seriatim.data.corpus import Corpus, Document
from seriatim.data.evaluation import EvaluationBatches
from seriatim.data.tokenizer import Tokenizer
from seriatim.objectives.next_token import next_token
from seriatim.train.evaluate import evaluate
from seriatim.train.loop import Result, fit
from seriatim.train.run_folder import RunFolder
from seriatim.train.settings import TrainSettings

__all__ = ["held_out_batches", "train_language_model"]


def train_language_model(
    model: Mixer, corpus: Corpus, tokenizer: Tokenizer, settings: TrainSettings, folder: RunFolder
) -> Result:
    """Trains the model on the corpus as the settings say, evaluating on the corpus's validation part."""
    if settings.carry and not model.constant_state:
        raise SeriatimError("train.carry is true; it must be false for a model whose state grows with what it reads")
    kind = ContiguousBatches if settings.carry else PackedBatches
    batches = kind(corpus.train, tokenizer, settings.batch, settings.window, settings.seed)
    held_out = held_out_batches(model, corpus.validation, tokenizer, settings, settings.evaluate_tokens)
    return fit(model, next_token, batches, settings, folder, lambda model: evaluate(model, held_out))


def held_out_batches(
    model: Mixer, documents: Sequence[Document], tokenizer: Tokenizer, settings: TrainSettings, tokens: int
) -> EvaluationBatches:
    """The text a model is measured on. One whose state grows reads windows that overlap by half instead."""
    overlap = 0 if model.constant_state else settings.window // 2
    return EvaluationBatches(documents, tokenizer, settings.batch, settings.window, tokens, overlap)
