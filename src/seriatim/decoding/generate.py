"""Writing a sequence token by token, with any model that obeys the contract on tokens."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seriatim.core import state as states
from seriatim.core.errors import SeriatimError
from seriatim.core.mixer import Mixer
from seriatim.decoding.sampler import Sampler
from seriatim.decoding.session import Session

__all__ = ["SEGMENT", "Generation", "Tokens", "generate"]

SEGMENT = 1024  # tokens of a prompt read at once: reading takes the memory of one segment, however long the prompt


class Tokens(NamedTuple):
    """One token of each row."""

    ids: Int[Tensor, " B"]
    active: Bool[Tensor, " B"]  # false where the row had stopped before; its id then repeats the stop token


def generate(
    model: Mixer,
    prompts: Sequence[Any] | None = None,
    *,
    tokens: int,
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    session: Session | None = None,
    begin: int | None = None,
    stop: int | Collection[int] | None = None,
) -> "Generation":
    """Reads the prompts now and returns an iterator that writes up to `tokens` tokens for each, one at a time.

    A row's tokens do not depend on the other rows (when drawn, its random numbers do). The model is used as it is: call
    `model.eval()` first where it has dropout.

    Args:
        model: reads (B, T) token ids, returns logits (B, T, vocab), is causal.
        prompts: B sequences of token ids (lists, arrays or tensors), of any lengths; None with a session: nothing new.
        tokens: how many tokens to write for each row at most.
        sampler: how a token is chosen; None is `Sampler()`, a plain draw.
        generator: where the randomness comes from; None is torch's global one, which a session does not keep. It takes
            the session's state, where the session has one.
        session: go on from here: `Generation.session` of an earlier call, or `load_session`.
        begin: the token that begins every document. Without a session it is read before each prompt that does not start
            with it, and wherever it is read the model forgets what came before, as it did in training.
        stop: a row that writes one of these tokens is finished.

    Raises:
        SeriatimError: an empty prompt without `begin`, an id outside the vocabulary, as many prompts as rows not given.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise SeriatimError(f"tokens is {tokens!r}; it must be an integer, 0 or above")
    if not model.causal or not model.reads_tokens:
        raise SeriatimError(f"{type(model).__name__} cannot write: it must be causal and read token ids")
    if session is None and prompts is None:
        raise SeriatimError("prompts is None; without a session it must hold a prompt for each row")
    if session is not None and generator is not None and session.generator.numel():
        generator.set_state(session.generator[0].cpu())
    stops = [] if stop is None else [stop] if isinstance(stop, int) else sorted(stop)
    if session is None or prompts is not None:
        session = _read(model, session, prompts or [], begin, generator)
    return Generation(model, session, tokens, sampler or Sampler(), generator, begin, stops)


class Generation(Iterator[Tokens]):
    """Iterates over `Tokens`. After each, `session` is what to save in order to go on from there."""

    session: Session

    def __init__(
        self,
        model: Mixer,
        session: Session,
        tokens: int,
        sampler: Sampler,
        generator: torch.Generator | None,
        begin: int | None,
        stops: Sequence[int],
    ):
        self.session = session
        self._model, self._sampler, self._generator, self._begin = model, sampler, generator, begin
        self._stops = session.pending.new_tensor(stops)
        self._left = tokens

    @torch.no_grad()
    def __next__(self) -> Tokens:
        state, pending, active, seen, _ = self.session
        if self._left == 0 or not bool(active.any()):
            raise StopIteration
        logits, new = self._model.step(pending, _forget(self._model, state, pending, self._begin))
        ids = torch.where(active, self._sampler(logits, seen, self._generator), pending)
        # One assignment, so that whoever interrupts finds the session before this token or after it.
        self.session = Session(
            state=new if bool(active.all()) else states.where(active, new, state),
            pending=ids,
            active=active & ~torch.isin(ids, self._stops),
            seen=seen.scatter(1, ids[:, None], True),
            generator=_generator_state(self._generator),
        )
        self._left -= 1
        return Tokens(ids, active)


@torch.no_grad()
def _read(
    model: Mixer, session: Session | None, prompts: Sequence[Any], begin: int | None, generator: torch.Generator | None
) -> Session:
    """The session in which every prompt was read but for its last token."""
    device = next(model.parameters()).device
    rows = [torch.as_tensor(prompt, dtype=torch.long, device=device).reshape(-1) for prompt in prompts]
    if session is not None:
        if len(rows) != len(session.pending):
            raise SeriatimError(f"prompts has {len(rows)} prompts; the session has {len(session.pending)} rows")
        active = session.active | torch.tensor([len(row) > 0 for row in rows], device=device)
        rows = [torch.cat([last[None], row]) for last, row in zip(session.pending, rows, strict=True)]
    else:
        active = torch.ones(len(rows), dtype=torch.bool, device=device)
        rows = [_begun(row, begin) for row in rows]
    state = model.init_state(len(rows)) if session is None else session.state
    vocabulary = _vocabulary(model, state, len(rows), device)
    _check_ids(rows, vocabulary)

    seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=device)
    seen = seen if session is None else session.seen.clone()
    for row, ids in enumerate(rows):
        seen[row, ids] = True
    state = _read_segments(model, state, [row[:-1] for row in rows], begin)
    pending = torch.stack([row[-1] for row in rows]) if rows else active.long()
    return Session(state, pending, active, seen, _generator_state(generator))


def _read_segments(model: Mixer, state: states.State, rows: Sequence[Tensor], begin: int | None) -> states.State:
    """The state after rows of different lengths, a segment at a time."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = max((len(row) for row in rows), default=0)
    for start in range(0, longest, SEGMENT):
        parts = [row[start : start + SEGMENT] for row in rows]
        segment = pad_sequence(parts, batch_first=True)
        reset = None if begin is None else segment == begin
        _, state = model(segment, state, reset=reset, lengths=(lengths - start).clamp(0, segment.size(1)))
    return state


def _begun(row: Tensor, begin: int | None) -> Tensor:
    """The prompt with the token that begins a document in front."""
    if begin is None or (len(row) and int(row[0]) == begin):
        return row
    return torch.cat([row.new_tensor([begin]), row])


def _forget(model: Mixer, state: states.State, pending: Tensor, begin: int | None) -> states.State:
    """The state with which `pending` is read: a new one where a document begins."""
    if begin is None or not bool((pending == begin).any()):
        return state
    return states.where(pending == begin, model.init_state(len(pending)), state)


def _vocabulary(model: Mixer, state: states.State, batch: int, device: torch.device) -> int:
    """How many tokens the model's logits tell apart, from the contract alone: a segment of no tokens."""
    logits, _ = model(torch.zeros(batch, 0, dtype=torch.long, device=device), state)
    return logits.size(-1)


def _check_ids(rows: Sequence[Tensor], vocabulary: int) -> None:
    for index, row in enumerate(rows):
        if not len(row):
            raise SeriatimError(f"prompt {index} is empty; it must hold a token, unless `begin` is given")
        lowest, highest = int(row.min()), int(row.max())
        if lowest < 0 or highest >= vocabulary:
            wrong = lowest if lowest < 0 else highest
            raise SeriatimError(f"prompt {index} holds the token {wrong}; tokens run from 0 to {vocabulary - 1}")


def _generator_state(generator: torch.Generator | None) -> Tensor:
    """(1, N) bytes; the leading 1 makes it a leaf like any other."""
    return torch.zeros(1, 0, dtype=torch.uint8) if generator is None else generator.get_state()[None]
