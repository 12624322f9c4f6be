"""One line a mixer: how the conformance suite builds it, and which checks it skips, each with a written reason."""

from collections.abc import Mapping
from typing import Any

__all__ = ["CASES", "Case"]


class Case:
    """A name that `seriatim.build` knows, its options, and check name to reason."""

    def __init__(self, name: str, *, skip: Mapping[str, str] | None = None, **options: Any):
        self.name, self.options, self.skip = name, options, dict(skip or {})

    def __repr__(self) -> str:
        given = [f"{option}={value}" for option, value in self.options.items() if isinstance(value, int | str)]
        return "-".join([self.name, *given])


NO_PROMPT = {"parameters_have_gradients": "two weights read prompts only, of which a state must tell; tests of its own"}
LAYERS = [{"mixer": "gla", "heads": 2}, {"mixer": "window", "heads": 2, "size": 9}]

CASES = [
    Case("elman", dim=16, heads=2),
    Case("lstm", dim=16, heads=2),
    Case("gru", dim=16, heads=2),
    Case("aaren", dim=16, heads=2),
    Case("gla", dim=16, heads=2),
    Case("lightnet", dim=16, heads=2),
    Case("lightnet", dim=12, heads=2, causal=False, shape=[5]),
    Case("prefix_linear", dim=16, heads=2, feature_dim=4, skip=NO_PROMPT),
    Case("mamba", dim=16),
    Case("attention", dim=16, heads=2),
    Case("attention", dim=16, heads=4, kv_heads=2),
    Case("window", dim=16, heads=2, size=9),
    Case("bidirectional", dim=16, inner={"mixer": "gla", "heads": 2}),
    Case("bidirectional", dim=16, inner={"mixer": "window", "heads": 2, "size": 9}, combine="concat", tied=True),
    Case("stack", dim=16, layers=LAYERS),
    Case("language_model", vocab_size=31, dim=16, layers=LAYERS),
    Case("language_model", vocab_size=5, dim=16, layers=LAYERS, ngram_heads=[1, 3]),
]
