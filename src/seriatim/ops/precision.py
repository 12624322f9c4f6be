"""In which precision an op computes: float32 at least, whatever its inputs and autocast say."""

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor

__all__ = ["cast", "compute_dtype", "full_precision", "widen"]

_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.complex32: torch.complex64}


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest dtype among the tensors, and at least float32: what an op computes in and what its state has."""
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors if tensor is not None])
    return _WIDER.get(dtype, dtype)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off: a float32 product inside an op must not become a half precision one."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """The tensors in that dtype; None stays None."""
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def widen(*tensors: Tensor | None) -> list[Any]:
    """The tensors in the dtype that they are computed in together."""
    return cast(compute_dtype(*tensors), *tensors)
