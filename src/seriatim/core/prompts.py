"""Tells a state that a prompt comes, for models that read prompts in another way than what follows them."""

from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.core.state import State, batch_size

__all__ = ["asks_for_prompt", "expect_prompt"]


def expect_prompt(state: State, lengths: Tensor | int) -> State:
    """The same state, in which the next lengths[b] tokens of row b are its prompt.

    A mixer that asks has a leaf `prompt` (B,) int64 in its state, which counts the prompt's tokens still to come; this
    sets every such leaf, however deep. Whatever else the state holds goes on as it was.

    Args:
        state: of a model or a mixer, usually `model.init_state(batch)`.
        lengths: (B,) int, or one for all rows.

    Raises:
        SeriatimError: no part of the state asks for a prompt, or lengths are not one whole number from 0 a row.
    """
    rows = batch_size(state)
    if isinstance(lengths, Tensor):
        if lengths.dim() != 1 or lengths.size(0) != rows or lengths.is_floating_point():
            shown = f"shape {tuple(lengths.shape)} and dtype {lengths.dtype}"
            raise SeriatimError(f"lengths has {shown}; it must be ({rows},) integers")
    elif isinstance(lengths, bool) or not isinstance(lengths, int) or lengths < 0:
        raise SeriatimError(f"lengths is {lengths!r}; it must be a whole number from 0, or one a row")
    marked, found = _marked(state, lengths)
    if not found:
        raise SeriatimError("state has no part that asks for a prompt; prefix_linear and prefix_bidirectional have one")
    return marked


def asks_for_prompt(state: State) -> bool:
    """Whether `expect_prompt` finds a part of the state to tell."""
    return _marked(state, 0)[1]


def _marked(state: State, lengths: Tensor | int) -> tuple[State, bool]:
    if isinstance(state, Tensor):
        return state, False
    parts, found = [], False
    for name, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
        if name == "prompt":
            new = part.new_zeros(part.shape) + (lengths.to(part) if isinstance(lengths, Tensor) else lengths)
            parts.append(new)
            found = True
        else:
            new, inside = _marked(part, lengths)
            parts.append(new)
            found = found or inside
    return (type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)), found
