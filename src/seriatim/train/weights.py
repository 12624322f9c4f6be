"""A model's weights as named tensors, tied ones once."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError

__all__ = ["load_weights", "weights"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers on the CPU. Of tensors that share their memory only the first is named."""
    kept: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        if _memory(tensor, name) not in seen:
            seen.add(_memory(tensor, name))
            kept[name] = tensor.detach().cpu().contiguous()
    return kept


def load_weights(model: nn.Module, stored: Mapping[str, Tensor], source: str) -> None:
    """Copies what `weights` returned into the model. Raises SeriatimError, naming `source`, where it does not fit."""
    own = model.state_dict()
    for name, tensor in stored.items():
        if name not in own or own[name].shape != tensor.shape:
            here = list(own[name].shape) if name in own else "absent"
            raise SeriatimError(f"{source} is of another model: {name} is {list(tensor.shape)} there and {here} here")
    filled = {_memory(own[name], name) for name in stored}
    missing = [name for name, tensor in own.items() if _memory(tensor, name) not in filled]
    if missing:
        raise SeriatimError(f"{source} is of another model: {missing[0]} is absent there")
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)


def _memory(tensor: Tensor, name: str) -> tuple:
    """Equal for tensors that are the same memory seen the same way."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
