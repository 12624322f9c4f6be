"""AdamW with the groups that sequence models want.

Source: Loshchilov and Hutter, 2019, arXiv:1711.05101.
"""

import torch
from torch import nn

from seriatim.train.settings import TrainSettings

__all__ = ["adamw", "decays", "parameter_groups"]

_NEVER = ("A_log",)  # logarithms of rates, where decay would pull the rates towards 1


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients; decay only where `decays` says so."""
    groups = parameter_groups(model, settings.weight_decay)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= {"cpu", "cuda"}  # one pass over the memory instead of a dozen
    return torch.optim.AdamW(groups, settings.learning_rate, (settings.beta1, settings.beta2), fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, in the model's order: what decays and what does not."""
    chosen: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:  # tied weights belong to who comes first
                seen.add(parameter)
                chosen[decays(module, f"{path}.{name}", parameter)].append(parameter)
    return [
        {"params": chosen[True], "weight_decay": weight_decay},
        {"params": chosen[False], "weight_decay": 0.0},
    ]


def decays(module: nn.Module, path: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on `module`'s own parameter, whose path in the model is `path`.

    It does on matrices. It does not on vectors (biases, gains), norms, embeddings (a rare token's row would fade while
    nothing is learned about it), `A_log`, and gates: what is named so, such as `gate_down` or `out_gate`, whose decay
    would pull every gate to half open.
    """
    names = path.split(".")
    if names[-1] in _NEVER or parameter.dim() < 2 or any("gate" in name.split("_") for name in names):
        return False
    return not isinstance(module, nn.Embedding) and "Norm" not in type(module).__name__
