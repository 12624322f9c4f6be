"""An environment of the tests: gymnasium's API without gymnasium."""

from types import SimpleNamespace

import numpy as np


class Echo:
    """Say at the end of a few steps the symbol that was shown first; a 0 is shown after it. A right answer gives 1.

    cut: an episode is cut off after the last step, in place of ending there. vector: the
    symbol and the time are shown, as features.
    """

    def __init__(self, symbols=3, length=4, cut=False, vector=False):
        self.symbols, self.length, self.cut, self.vector = symbols, length, cut, vector
        self.action_space = SimpleNamespace(n=symbols)
        self.observation_space = SimpleNamespace(shape=(2,)) if vector else SimpleNamespace(n=symbols + 1)
        self.random = np.random.default_rng(0)
        self.seeds = []

    def reset(self, *, seed=None):
        self.seeds.append(seed)
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.first, self.time = int(self.random.integers(self.symbols)), 0
        return self._seen(self.first + 1), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.length
        reward = float(over and action == self.first)
        return self._seen(0), reward, over and not self.cut, over and self.cut, {}

    def _seen(self, symbol):
        return np.array([symbol, self.time]) if self.vector else symbol
