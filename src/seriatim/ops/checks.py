"""Checks of an op's arguments, before any work: shapes that agree, floating dtypes, one device."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError

__all__ = ["check_lengths", "check_reset", "check_tensors"]


def check_tensors(arguments: Mapping[str, tuple[Tensor | None, str]], *, allow_complex: bool = False) -> dict[str, int]:
    """Checks all tensors of a call against patterns such as "batch time heads keys" and returns the sizes by name.

        sizes = check_tensors({"q": (q, "batch time heads keys"), "state": (state, "batch heads keys values?")})

    A name stands for one size wherever it occurs; a last name with a star, "batch time *features", for any number of
    them; a number for itself. With a question mark behind it all, the tensor may be None. The first tensor's device is
    the device of all. Integers are refused, and complex numbers too unless `allow_complex`.

    Raises:
        SeriatimError: names the argument, what it has and what it must have.
    """
    sizes: dict[str, int] = {}
    first = next(iter(arguments))
    for name, (tensor, pattern) in arguments.items():
        if tensor is None and pattern.endswith("?"):
            continue
        axes = pattern.removesuffix("?").split()
        if not isinstance(tensor, Tensor):
            raise SeriatimError(f"{name} is {tensor!r}; it must be a tensor of shape {_shown(axes)}")
        _check_dtype(name, tensor, allow_complex)
        _check_shape(name, tensor, axes, sizes)
        device = arguments[first][0].device  # type: ignore[union-attr]
        if tensor.device != device:
            raise SeriatimError(f"{name} is on {tensor.device}; it must be on {device}, where {first} is")
    return sizes


def check_reset(reset: Tensor | None, like: Tensor) -> None:
    """Raises unless reset is None or (batch, time) bool on the device of `like` (batch, time, ...)."""
    if reset is None:
        return
    if not isinstance(reset, Tensor):
        raise SeriatimError(f"reset is {reset!r}; it must be a tensor of bool, (batch, time)")
    ragged.check_reset(reset, like.size(0), like.size(1))
    if reset.device != like.device:
        raise SeriatimError(f"reset is on {reset.device}; it must be on {like.device}, where the inputs are")


def check_lengths(lengths: Tensor | None, like: Tensor) -> None:
    """Raises unless lengths is None or (batch,) of integers from 0 to time, for `like` (batch, time, ...)."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        raise SeriatimError(f"lengths is {lengths!r}; it must be a tensor of integers, (batch,)")
    ragged.check_lengths(lengths, like.size(0), like.size(1))


def _check_dtype(name: str, tensor: Tensor, allow_complex: bool) -> None:
    if not (tensor.is_floating_point() or (allow_complex and tensor.is_complex())):
        accepted = "floating or complex" if allow_complex else "floating"
        raise SeriatimError(f"{name} has dtype {tensor.dtype}; it must be {accepted}")


def _check_shape(name: str, tensor: Tensor, pattern: Sequence[str], sizes: dict[str, int]) -> None:
    axes = pattern
    if pattern and pattern[-1].startswith("*"):
        extra = tensor.dim() - len(pattern) + 1
        if sizes.setdefault(pattern[-1], max(extra, 0)) != extra:
            _refuse(name, tensor, pattern, sizes)
        axes = [*pattern[:-1], *(f"{pattern[-1]}{index}" for index in range(extra))]
    if tensor.dim() != len(axes):
        _refuse(name, tensor, pattern, sizes)
    for axis, size in zip(axes, tensor.shape, strict=True):
        if size != (int(axis) if axis.isdecimal() else sizes.setdefault(axis, size)):
            _refuse(name, tensor, pattern, sizes)


def _refuse(name: str, tensor: Tensor, pattern: Sequence[str], sizes: Mapping[str, int]) -> None:
    known: list[str] = []
    for axis in pattern:
        if axis in sizes and axis.startswith("*"):
            known += [str(sizes[f"{axis}{index}"]) for index in range(sizes[axis])]
        else:
            known.append(str(sizes.get(axis, axis)))
    wanted = f" = ({', '.join(known)})" if sizes else ""
    raise SeriatimError(f"{name} has shape {tuple(tensor.shape)}; it must be {_shown(pattern)}{wanted}")


def _shown(pattern: Sequence[str]) -> str:
    return f"({', '.join(pattern)})"
