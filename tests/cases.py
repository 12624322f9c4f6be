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


NO_PROMPT = {"parameters_have_gradients": "some weights work in prompts only, of which a state must tell; own tests"}
GLA, HALF_SSM = {"mixer": "gla", "heads": 2}, {"mixer": "gated_ssm", "state_size": 10}
LAYERS = [{"mixer": "gla", "heads": 2}, {"mixer": "window", "heads": 2, "size": 9}]

CASES = [
    Case("elman", dim=16, heads=2),
    Case("lstm", dim=16, heads=2),
    Case("gru", dim=16, heads=2),
    Case("aaren", dim=16, heads=2),
    Case("gla", dim=16, heads=2),
    Case("deltanet", dim=16, heads=2),
    Case("deltanet", dim=16, heads=2, eigenvalues="signed"),
    Case("gated_deltanet", dim=16, heads=2),
    Case("gated_deltanet", dim=16, heads=2, expand_v=1, eigenvalues="signed"),
    Case("deltaproduct", dim=16, heads=2),
    Case("deltaproduct", dim=16, heads=2, householders=3, forget_gate=False, output_gate=False, eigenvalues="positive"),
    Case("linear", dim=16, heads=2),
    Case("linear", dim=16, heads=2, feature_map="relu"),
    Case("linear", dim=16, heads=2, feature_map="squared_relu"),
    Case("linear", dim=16, heads=2, feature_map="identity", normalize=False),
    Case("linear", dim=16, heads=2, feature_map="taylor", query_dim=5),
    Case("linear", dim=16, heads=2, feature_map="performer", random_features=12),
    Case("retnet", dim=16, heads=2),
    Case("hgrn2", dim=16, heads=2),
    Case("hgrn2", dim=16, heads=2, lower_bound=0.25, norm="rms"),
    Case("based", dim=16, heads=2, query_dim=6),
    Case("mlstm", dim=8, heads=2),
    Case("mlstm", dim=8, heads=2, forget_gate="exp", conv_size=2, block_size=8),
    Case("plstm", dim=16, heads=2),
    Case("rwkv4", dim=16, layer=1, layers=3),
    Case("rwkv6", dim=16, heads=2, mix_rank=3, decay_rank=4, layer=1, layers=3),
    Case("lightnet", dim=16, heads=2),
    Case("lightnet", dim=12, heads=2, causal=False, shape=[5]),
    Case("prefix_linear", dim=16, heads=2, feature_dim=4, skip=NO_PROMPT),
    Case("s4d", dim=8, state_size=6),
    Case("s4d", dim=8, state_size=6, init="legs", discretization="bilinear", rate=2.0),
    Case("gated_ssm", dim=16),
    Case("gated_ssm", dim=8, state_size=6),
    Case("mamba", dim=16),
    Case("mixture_of_memories", dim=16, heads=2),
    Case("mixture_of_memories", dim=16, heads=2, memories=3, active=1, shared=False, rule="gla"),
    Case("mixture_of_memories", dim=16, heads=2, rule="linear"),
    Case("mixture_of_memories", dim=16, heads=2, rule="delta"),
    Case("mamba", dim=16, eigenvalues="signed"),
    Case("attention", dim=16, heads=2),
    Case("attention", dim=16, heads=4, kv_heads=2),
    Case("window", dim=16, heads=2, size=9),
    Case("bidirectional", dim=16, inner={"mixer": "gla", "heads": 2}),
    Case("bidirectional", dim=16, inner={"mixer": "window", "heads": 2, "size": 9}, combine="concat", tied=True),
    Case("prefix_bidirectional", dim=16, inner=HALF_SSM, skip=NO_PROMPT),
    Case("prefix_bidirectional", dim=16, inner=GLA, skip=NO_PROMPT),
    Case("stack", dim=16, layers=LAYERS),
    Case("hierarchical_ssm", dim=8, low=["s4d"], high=["gla"], chunk=4),
    Case("hierarchical_ssm", dim=8, low=["gru"], high=["s4d", "gru"], chunk=3, feed_forward="gelu"),
    Case("stack", dim=8, layers=["mamba", LAYERS[1]], feed_forward=["gelu", {"feed_forward": "moe", "experts": 3}]),
    Case("language_model", vocab_size=31, dim=16, layers=LAYERS),
    Case("classifier", channels=3, classes=4, dim=8, layers=["s4d", LAYERS[1]]),
    Case("classifier", channels=3, classes=4, dim=8, layers=LAYERS, pool="last", norm="layer"),
    Case("language_model", vocab_size=5, dim=16, layers=LAYERS, ngram_heads=[1, 3]),
]
