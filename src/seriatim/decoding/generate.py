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

MOST_UNSETTLED = 256  # tokens written before they are put among those seen
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


class _Moment(NamedTuple):
    """A session between two tokens, with what makes the next one quick to come to."""

    state: states.State
    pending: Tensor  # (B,)
    active: Tensor  # (B,) bool
    last: list[int]  # the pending tokens
    running: bool  # whether all rows are active
    seen: Tensor  # (B, vocab) bool, without what was written since
    written: list[Tensor]  # the tokens written since, (B,) each, of which the first `unsettled` belong to this moment
    unsettled: int
    generator: Tensor


class Generation(Iterator[Tokens]):
    """Iterates over `Tokens`. After each, `session` is what to save in order to go on from there."""

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
        state, pending, active, seen, drawn = session
        self._now = _Moment(state, pending, active, pending.tolist(), all(active.tolist()), seen, [], 0, drawn)
        self._model, self._sampler, self._generator, self._begin = model, sampler, generator, begin
        self._stops = frozenset(stops)
        self._left = tokens

    @property
    def session(self) -> Session:
        """The session after the last token."""
        now = self._settled(self._now)
        return Session(now.state, now.pending, now.active, now.seen, now.generator)

    def __next__(self) -> Tokens:
        with torch.no_grad():
            return self._write()

    def _write(self) -> Tokens:
        now = self._now
        if self._left == 0 or not (now.running or bool(now.active.any())) or not now.last:
            raise StopIteration
        if self._sampler.repetition_penalty != 1 or now.unsettled == MOST_UNSETTLED:
            now = self._settled(now)
        state = now.state if self._begin is None else _forget(self._model, now, self._begin)
        logits, new = self._model.step(now.pending, state)
        ids = self._sampler(logits, now.seen, self._generator)
        if not now.running:
            ids, new = torch.where(now.active, ids, now.pending), states.where(now.active, new, now.state)
        last, active = ids.tolist(), now.active
        if not self._stops.isdisjoint(last):
            active = active & torch.tensor([z not in self._stops for z in last], device=active.device)
        now.written[now.unsettled :] = [ids]
        # One assignment, so that whoever interrupts finds the session before this token or after it.
        self._now = _Moment(
            state=new,
            pending=ids,
            active=active,
            last=last,
            running=now.running if active is now.active else False,
            seen=now.seen,
            written=now.written,
            unsettled=now.unsettled + 1,
            generator=now.generator if self._generator is None else _generator_state(self._generator),
        )
        self._left -= 1
        return Tokens(ids, now.active)

    @torch.no_grad()
    def _settled(self, now: _Moment) -> _Moment:
        """The same moment, what was written among what was seen."""
        if now.unsettled:
            seen = now.seen.scatter(1, torch.stack(now.written[: now.unsettled], 1), True)
            now = now._replace(seen=seen, written=[], unsettled=0)
            self._now = now
        return now


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


def _forget(model: Mixer, now: _Moment, begin: int) -> states.State:
    """The state with which the pending tokens are read: a new one where a document begins."""
    if begin not in now.last:
        return now.state
    return states.where(now.pending == begin, model.init_state(len(now.last)), now.state)


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
