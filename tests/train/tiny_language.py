"""A language model of a few lines that obeys the contract, and what it takes to train it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.data.batches import ContiguousBatches, PackedBatches
from seriatim.data.corpus import Document
from seriatim.data.evaluation import EvaluationBatches
from seriatim.data.tokenizer import ByteTokenizer
from seriatim.train.checkpoint import load
from seriatim.train.generators import seed
from seriatim.train.run_folder import RunFolder
from seriatim.train.settings import TrainSettings

__all__ = [
    "TinyLanguage",
    "documents",
    "evaluation_batches",
    "final_weights",
    "new_model",
    "new_run",
    "next_token",
    "settings",
    "training_batches",
]


class TinyLanguage(Mixer):
    """A gated recurrent unit over bytes. Its two ends share their weights."""

    reads_tokens = True

    def __init__(self, vocab_size: int = 257, dim: int = 8, dropout: float = 0.1):
        super().__init__()
        self.vocab_size, self.dim, self.dropout = vocab_size, dim, dropout
        self.embedding = nn.Embedding(vocab_size, dim)
        self.cell = nn.GRUCell(dim, dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def init_state(self, batch: int) -> State:
        return self.new_state(batch, self.dim)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        outputs = []
        for t, token in enumerate(self.embedding(x).unbind(1)):
            before = state if reset is None else state.masked_fill(reset[:, t, None], 0)
            after = self.cell(token, before)
            state = after if lengths is None else torch.where((t < lengths)[:, None], after, before)
            outputs.append(state)
        return self.head(F.dropout(torch.stack(outputs, 1), self.dropout, self.training)), state


def next_token(model, batch, state=None):
    """The plain objective."""
    logits, state = model(batch.tokens, state, reset=batch.reset)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()), state


def documents():
    """Two hundred lines of a small language."""
    lines = [f"for item_{i} in range({i % 7}): total += item_{i}\n".encode() for i in range(200)]
    return [Document(f"{i}.py", b"".join(lines[i : i + 4])) for i in range(0, 200, 4)]


def training_batches(carry: bool = True, batch: int = 2, window: int = 8):
    kind = ContiguousBatches if carry else PackedBatches
    return kind(documents(), ByteTokenizer(), batch, window)


def evaluation_batches(tokens: int = 100):
    return EvaluationBatches(documents(), ByteTokenizer(), 2, 8, tokens=tokens)


def settings(**options) -> TrainSettings:
    """Twelve steps in which everything happens: evaluations, log lines and checkpoints at different steps."""
    defaults = {
        "steps": 12,
        "batch": 2,
        "window": 8,
        "evaluate_every": 4,
        "checkpoint_every": 5,
        "log_every": 3,
        "device": "cpu",
        "precision": "float32",
    }
    return TrainSettings(**{**defaults, **options})


def new_run(path, model, chosen: TrainSettings, resume: bool = False) -> RunFolder:
    return RunFolder(path, {"model": type(model).__name__, "train": chosen.plain()}, resume)


def final_weights(path) -> dict[str, Tensor]:
    return load(path).state_dict()


def new_model(**options) -> TinyLanguage:
    seed(0)
    return TinyLanguage(**options)
