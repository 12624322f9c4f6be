"""A generation that can be put away and taken up again, in another process, without reading its past again."""

import hashlib
import json
from os import PathLike
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor, nn

from seriatim.core import state as states
from seriatim.core.build import spec
from seriatim.core.mixer import Mixer
from seriatim.core.state import State

__all__ = ["Session", "fingerprint", "load_session", "save_session"]


class Session(NamedTuple):
    """All that the tokens to come depend on: going on from it gives what never stopping would have given.

    The last token of each row, the prompt's or a chosen one, was not read by the model yet: it is `pending`, the first
    thing to be read when the generation goes on. So the end of a prompt and the end of a generation are the same.
    """

    state: State  # after every token but the pending one
    pending: Int[Tensor, " B"]
    active: Bool[Tensor, " B"]  # false where the row reached a stop token
    seen: Bool[Tensor, "B vocab"]  # tokens that occurred, the pending one included: for the repetition penalty
    generator: UInt8[Tensor, "1 N"]  # the random generator's state; N is 0 where there is none


def fingerprint(model: nn.Module) -> str:
    """The head of a sha256 over spec and weights: models of one fingerprint understand each other's states."""
    digest = hashlib.sha256(json.dumps(spec(model), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_session(session: Session, path: str | PathLike[str], model: nn.Module) -> None:
    """Writes the session as safetensors, whole or not at all, with the fingerprint of the model it belongs to."""
    states.save(session, path, {"model": fingerprint(model)})


def load_session(path: str | PathLike[str], model: Mixer) -> Session:
    """Reads a session of this model. Raises SeriatimError where the file is another model's, or no session."""
    device = next(model.parameters()).device
    rows = torch.zeros(1, dtype=torch.long, device=device)
    like = Session(
        state=model.init_state(1),
        pending=rows,
        active=rows.bool(),
        seen=rows.bool()[:, None][:, :0],  # a second dimension of 0 stands for any size
        generator=torch.zeros(1, 0, dtype=torch.uint8),
    )
    return states.load(path, like, {"model": fingerprint(model)})
