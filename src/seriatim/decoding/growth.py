"""How the state grows with what is read, measured on the model itself."""

from typing import NamedTuple

import torch

from seriatim.core import state as states
from seriatim.core.mixer import Mixer

__all__ = ["Growth", "growth"]


class Growth(NamedTuple):
    """Bytes of one row's state: `fixed` and, for every token that was read, `per_token`."""

    fixed: int
    per_token: float

    def bytes(self, tokens: int) -> int:
        """The size of the state after so many tokens."""
        return self.fixed + round(self.per_token * tokens)


@torch.no_grad()
def growth(model: Mixer, probe: int = 64) -> Growth:
    """Reads `probe` tokens and as many again; a state of constant size has per_token = 0."""
    device = next(model.parameters()).device
    state, sizes = model.init_state(1), []
    for _ in range(2):
        _, state = model(torch.zeros(1, probe, dtype=torch.long, device=device), state)
        sizes.append(states.nbytes(state))
    per_token = (sizes[1] - sizes[0]) / probe
    return Growth(round(sizes[0] - per_token * probe), per_token)
