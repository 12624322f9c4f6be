"""Chooses how often each objective is trained, by the rewards that a model expects of it."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_positive, check_size
from seriatim.core.optimiser_state import flat_optimiser, restore_optimiser
from seriatim.objectives.birdie.denoising import Denoising
from seriatim.objectives.birdie.reward import RewardModel, reward

__all__ = ["Curriculum"]

EARLY = (10, 50, 250, 500, 1000, 1500, 2000)
EVERY = 1000
HISTORY = ("weights", "losses", "actions", "rewards")
RATE, LEAST_RATE, DECAY, CLIP = 5e-4, 1e-3, 0.1, 1.0  # of the official code


class Curriculum:
    """Birdie's mixture: weights for objectives, set anew after each evaluation of their losses.

    After the steps `evaluations`, and then every `every` steps, the losses of all objectives are measured and given to
    `observe`. It adds the interval (losses at its beginning, weights, reward) to what happened so far, and trains its
    reward model on all of that for some iterations, never to a target. Until the step `control` weights stay equal.
    From then on, many random mixtures are proposed, and the mean of the best is taken: those of the highest sum of
    expected rewards, in which parametrisations of one kind of objective count as one.

    Everything is drawn from `seed`: runs repeat, and one that is read from `state_dict` goes on as if it had not
    stopped.

    Args:
        objectives: those there are, several parametrisations of a kind among them.
        seed: of the reward model's weights and of what is proposed.
        evaluations: steps of the first evaluations.
        every: steps between those that follow.
        control: the step from which weights are chosen.
        candidates: mixtures that are proposed.
        best: how many of them are averaged.
        iterations: of the reward model, at each evaluation.
        sensitivity: r of the reward.
        dim, layers: of the reward model.

    Attributes:
        weights: (objectives,), of sum 1.

    Source: Blouir et al., 2024, arXiv:2411.01030, sections 3.3 and A.1, figure 4. What the paper leaves open is as in
        its official code: AdamW, whose rate rises and falls once in each evaluation, and clipped gradients.
    """

    def __init__(
        self,
        objectives: Sequence[Denoising],
        *,
        seed: int = 0,
        evaluations: Sequence[int] = EARLY,
        every: int = EVERY,
        control: int = 250,
        candidates: int = 2048,
        best: int = 8,
        iterations: int = 200,
        sensitivity: float = math.e,
        dim: int = 256,
        layers: int = 4,
    ):
        check_size(every=every, candidates=candidates, best=best, iterations=iterations)
        check_positive(sensitivity=sensitivity)
        if not objectives:
            raise SeriatimError("objectives is empty; it must hold at least one")
        if best > candidates:
            raise SeriatimError(f"best is {best}; it must be at most candidates, which is {candidates}")
        self.objectives, self.evaluations, self.every, self.control = (
            tuple(objectives),
            tuple(evaluations),
            every,
            control,
        )
        self.candidates, self.best, self.iterations, self.sensitivity = candidates, best, iterations, sensitivity
        count = len(self.objectives)
        self.weights = torch.full((count,), 1 / count)
        self.losses = self.actions = self.rewards = torch.zeros(0, count)  # (intervals, objectives)
        self.now: Tensor | None = None  # the losses last measured
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = RewardModel(count, dim, layers)
        self._optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=DECAY)
        kinds = [type(objective) for objective in self.objectives]
        self._shares = torch.tensor([1 / kinds.count(kind) for kind in kinds])

    def is_due(self, step: int) -> bool:
        """Whether the losses are to be measured after this many steps."""
        last = max(self.evaluations, default=0)
        return step in self.evaluations or (step > last and step % self.every == 0)

    def observe(self, step: int, losses: Tensor) -> None:
        """Learns from an interval that the weights were used for, and chooses those of the next.

        Args:
            step: steps done so far.
            losses: (objectives,), of each objective by itself, always on the same text.
        """
        losses = losses.detach().float().cpu()
        if losses.shape != self.weights.shape or not (losses.isfinite() & (losses >= 0)).all():
            raise SeriatimError(f"losses are {losses.tolist()}; they must be {len(self.weights)} numbers from 0")
        if self.now is not None:
            self.losses = torch.cat([self.losses, self.now[None]])
            self.actions = torch.cat([self.actions, self.weights[None]])
            self.rewards = torch.cat([self.rewards, reward(self.now, losses, self.sensitivity)[None]])
            self._learn()
        self.now = losses
        if step >= self.control and len(self.rewards):
            self.weights = self._choose(losses)

    @torch.enable_grad()
    def _learn(self) -> None:
        for iteration in range(self.iterations):
            height = 1 - abs(2 * iteration / self.iterations - 1)
            for group in self._optimiser.param_groups:
                group["lr"] = RATE * (LEAST_RATE + (1 - LEAST_RATE) * height)
            expected, _ = self.model(self.losses[None], self.actions[None])
            error = (expected[0] - self.rewards).square().mean()
            self._optimiser.zero_grad()
            error.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self._optimiser.step()

    def _choose(self, now: Tensor) -> Tensor:
        proposed = torch.rand(self.candidates, len(self.objectives), generator=self._generator)
        proposed = proposed / proposed.sum(1, keepdim=True)
        total = (self.model.candidates(self.losses, self.actions, now, proposed) * self._shares).sum(1)
        return proposed[total.topk(self.best).indices].mean(0)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of all that changes, as named tensors."""
        state = {name: getattr(self, name) for name in HISTORY} | flat_optimiser(self._optimiser)[0]
        state |= {"generator": self._generator.get_state()}
        state |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.now is not None:
            state["now"] = self.now
        return deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from there. Raises SeriatimError where the objectives or the reward model have another size."""
        if len(state["weights"]) != len(self.weights):
            raise SeriatimError(f"the state is of {len(state['weights'])} objectives; there are {len(self.weights)}")
        own = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        model = {name: value for name, value in state.items() if name.startswith("model.")}
        if {name: z.shape for name, z in model.items()} != {name: z.shape for name, z in own.items()}:
            raise SeriatimError("the state is of a reward model of another size; dim and layers must be as they were")
        for name in HISTORY:
            setattr(self, name, state[name].clone())
        self.now = state.get("now")
        self._generator.set_state(state["generator"])
        self.model.load_state_dict({name.removeprefix("model."): value for name, value in model.items()})
        restore_optimiser(self._optimiser, state)
