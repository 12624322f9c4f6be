"""The settings of a training run. No torch here: the command line reads this file for its flags and their help."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from seriatim.core.errors import SeriatimError, check_one_of, check_positive

__all__ = ["TrainSettings"]


def _option(default: Any, text: str, free: bool = False) -> Any:
    """A field with its help. free: it does not change what is computed, so a resumed run may change it."""
    return field(default=default, metadata={"help": text, "free": free})


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained. Each field's help is in its metadata: `fields(TrainSettings)[0].metadata["help"]`.

    Raises SeriatimError, naming the field, where a value is out of range.
    """

    steps: int = _option(1000, "updates of the weights; 0: as many as minutes allow, the schedule following the clock")
    minutes: float = _option(0.0, "stop after so many minutes of training, evaluations not counted; 0: no limit", True)
    batch: int = _option(16, "sequences in a batch")
    window: int = _option(256, "tokens of a sequence that gradients flow through")
    carry: bool = _option(
        False,
        "read documents in order and carry the state from window to window (truncated back-propagation); otherwise "
        "shuffled windows, each on its own, from which short runs learn more",
    )
    accumulate: int = _option(1, "batches whose gradients are averaged into one update")
    learning_rate: float = _option(2e-3, "the highest learning rate")
    schedule: Literal["cosine", "linear", "constant"] = _option("cosine", "how the learning rate falls after warm-up")
    warmup: float = _option(0.05, "share of the run in which the learning rate rises")
    final_rate: float = _option(0.1, "the learning rate at the end, as a share of the highest")
    weight_decay: float = _option(0.1, "AdamW's decay of matrices; norms, biases, gates, embeddings and A_log never")
    beta1: float = _option(0.9, "AdamW's memory of the gradient")
    beta2: float = _option(0.95, "AdamW's memory of the squared gradient")
    clip: float = _option(1.0, "longest gradient norm; longer ones are scaled down; 0: no limit")
    precision: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", "bfloat16: matrix products under autocast; auto: that where the hardware has units for it, else float32"
    )
    compile: bool = _option(False, "compile the model with torch.compile, which may take minutes at the start")
    device: str = _option("auto", "cpu, cuda, cuda:1, mps; auto: a GPU where there is one")
    seed: int = _option(0, "of the initial weights, the order of the data and dropout")
    evaluate_every: int = _option(250, "steps between evaluations; 0: only at the end")
    evaluate_tokens: int = _option(100_000, "tokens of the validation split in an evaluation; 0: all of them")
    patience: int = _option(0, "stop after this many evaluations without a better one, and keep the best; 0: never")
    checkpoint_every: int = _option(250, "steps between checkpoints; one is always written at the end", True)
    keep: int = _option(3, "newest checkpoints that are kept", True)
    log_every: int = _option(10, "steps between lines of the log")

    def __post_init__(self) -> None:
        check_positive(
            batch=self.batch, window=self.window, accumulate=self.accumulate, learning_rate=self.learning_rate,
            checkpoint_every=self.checkpoint_every, keep=self.keep, log_every=self.log_every,
        )  # fmt: skip
        at_least_zero = "steps minutes weight_decay clip evaluate_every evaluate_tokens patience seed"
        for name in at_least_zero.split():
            if not getattr(self, name) >= 0:
                raise SeriatimError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.seed >= 2**63:
            raise SeriatimError(f"seed is {self.seed}; it must be below 2**63")
        for name in ("warmup", "final_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise SeriatimError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SeriatimError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        check_one_of("schedule", self.schedule, ("cosine", "linear", "constant"))
        check_one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        if self.patience and not self.evaluate_every:
            raise SeriatimError(f"patience is {self.patience} and evaluate_every is 0; patience needs evaluations")
        if not self.steps and not self.minutes:
            raise SeriatimError("steps and minutes are both 0; one of them must say when training ends")

    def plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def free(cls) -> frozenset[str]:
        """The fields that a resumed run may change."""
        return frozenset(f.name for f in fields(cls) if f.metadata["free"])
