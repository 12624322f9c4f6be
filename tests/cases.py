"""One line a mixer: how the conformance suite builds it, and which checks it skips, each with a written reason."""

from collections.abc import Mapping
from typing import Any

__all__ = ["CASES", "Case"]


class Case:
    """A name that `seriatim.build` knows, its options, check name to reason, and whether it reads a batch first.

    `reads`: in training, for batch norms to find their averages.
    """

    def __init__(self, name: str, *, skip: Mapping[str, str] | None = None, reads: bool = False, **options: Any):
        self.name, self.options, self.skip, self.reads = name, options, dict(skip or {}), reads

    def __repr__(self) -> str:
        given = [f"{option}={value}" for option, value in self.options.items() if isinstance(value, int | str)]
        return "-".join([self.name, *given])


NO_PROMPT = {"parameters_have_gradients": "some weights work in prompts only, of which a state must tell; own tests"}
GLA, HALF_SSM = {"mixer": "gla", "heads": 2}, {"mixer": "gated_ssm", "state_size": 10}
LAYERS = [{"mixer": "gla", "heads": 2}, {"mixer": "window", "heads": 2, "size": 9}]
BATCH_NORM = {"rows_independent": "holds in evaluation; in training batch norm takes means over all rows, by design"}
SURROGATE = "a spike is a step, whose gradient is a sigmoid's by design; tests of its own"
ROUNDED = "a rounded sum may or may not reach a threshold, and what follows differs by whole spikes"
SPIKES = {
    **BATCH_NORM,
    **dict.fromkeys(["gradcheck_input", "gradcheck_state", "gradcheck_parameters"], SURROGATE),
    **dict.fromkeys(["bf16_drift_short", "bf16_drift_long", "autocast_drift"], ROUNDED),
}
MAMBA2 = {"mixer": "mamba2", "state_size": 5, "head_dim": 4, "groups": 2}
FRAMES = "seriatim.vision.frames:FlatFrames"
CONV_S5 = {"mixer": "seriatim.vision.conv_s5:ConvS5", "channels": 2, "state_size": 4}
CONV_LSTM = {"mixer": "seriatim.vision.conv_lstm:ConvLSTM", "channels": 2}
FILM_LAYERS = [{**CONV_S5, "channels": 4}, {**CONV_LSTM, "channels": 4}]
FILM = {"mixer": "seriatim.vision.film:FilmModel", "dim": 4, "layers": FILM_LAYERS, "depths": [4, 8], "groups": 2}

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
    Case("rwkv7", dim=16, heads=2, decay_rank=3, rate_rank=4, gate_rank=5, layer=1, layers=3),
    Case("lightnet", dim=16, heads=2),
    Case("lightnet", dim=12, heads=2, causal=False, shape=[5]),
    Case("prefix_linear", dim=16, heads=2, feature_dim=4, skip=NO_PROMPT),
    Case("s4d", dim=8, state_size=6),
    Case("s4d", dim=8, state_size=6, init="legs", discretization="bilinear", rate=2.0),
    Case("s4", dim=8, state_size=6),
    Case("s4", dim=8, state_size=6, discretization="zoh", rate=2.0),
    Case("lssl", dim=8, state_size=5),
    Case("lssl", dim=8, state_size=5, channels=2, discretization="zoh", rate=2.0),
    Case("dss", dim=8, state_size=6),
    Case("dss", dim=8, state_size=6, variant="softmax", length=48),
    Case("liquid_s4", dim=8, state_size=6),
    Case("liquid_s4", dim=8, state_size=6, kernel="kb", order=4, init="lin", discretization="zoh"),
    Case("s4nd", dim=4, state_size=4, shape=[3, 2], rank=2, init="lin", discretization="bilinear", rate=2.0),
    Case("s4nd", dim=6, state_size=4),
    Case("h3", dim=6, state_size=4, shift_size=5),
    Case("h3", dim=6, head_dim=2, state_size=4, shift_size=3, init="legs", discretization="zoh", rate=2.0),
    Case("gss", dim=8, systems=3, inner=10, state_size=6),
    Case("hyena", dim=6, filter_length=70, features=5, width=8),
    Case("hyena", dim=4, order=3, filter_length=7, conv_size=1, features=3, width=4, frequency=2.0),
    Case("mega", dim=6, chunk=7, state_size=3, key_dim=4),
    Case("mega", dim=6, chunk=16, state_size=2, key_dim=4, inner=5, attention="laplace", bias="rotary"),
    Case("lru", dim=8, state_size=6),
    Case("lru", dim=8, r_min=0.9, r_max=0.99, max_phase=0.6),
    Case("s5", dim=8, state_size=12, blocks=3),
    Case("s5", dim=8, activation="full_glu", discretization="bilinear", rate=2.0, c_init="complex_normal"),
    Case("s5", dim=6, activation="gelu", conj_sym=False, c_init="lecun_normal"),
    Case("s5", dim=6, activation="half_glu2", clip_eigenvalues=True),
    Case("rg_lru", dim=16, heads=2),
    Case("rg_lru", dim=8, heads=3, width=12, conv_size=1),
    Case("lmu", dim=8, window=20.0),
    Case("lmu", dim=6, order=5, window=9.5, memories=3, signal_activation="identity", activation="tanh"),
    Case("gated_ssm", dim=16),
    Case("gated_ssm", dim=8, state_size=6),
    Case("mamba", dim=16),
    Case("mixture_of_memories", dim=16, heads=2),
    Case("mixture_of_memories", dim=16, heads=2, memories=3, active=1, shared=False, rule="gla"),
    Case("mixture_of_memories", dim=16, heads=2, rule="linear"),
    Case("mixture_of_memories", dim=16, heads=2, rule="delta"),
    Case("mixture_of_memories", dim=16, heads=2, conv_size=4),
    Case("mixture_of_memories", dim=16, heads=2, memories=3, active=1, shared=False, rule="gla", conv_size=2),
    Case("mamba", dim=16, eigenvalues="signed"),
    Case("mamba", dim=12, heads=3, state_size=5, select_norm="rms"),
    Case("mamba", dim=12, state_size=5, select_norm="rms_unscaled"),
    Case("mamba2", dim=16, state_size=12, head_dim=8),
    Case("mamba2", dim=12, state_size=5, head_dim=6, groups=2, norm_groups=1, norm_before_gate=True, conv_size=3),
    Case("mamba2", dim=8, state_size=5, head_dim=4, groups=2, step_min=0.01, step_max=0.3, bias=True, conv_bias=False),
    Case("hydra", dim=16, state_size=6, head_dim=8),
    Case("hydra", dim=12, state_size=5, head_dim=6, groups=2, conv_size=3),
    Case("attention", dim=16, heads=2),
    Case("attention", dim=16, heads=4, kv_heads=2),
    Case("window", dim=16, heads=2, size=9),
    Case("bidirectional", dim=16, inner={"mixer": "gla", "heads": 2}),
    Case("bidirectional", dim=16, inner={"mixer": "window", "heads": 2, "size": 9}, combine="concat", tied=True),
    Case("forgetful_mamba2", dim=8, inner=MAMBA2, retain=0.9, insert=0.7),
    Case("normalized_state", dim=8, inner=MAMBA2, limit=0.02),
    Case("state_window", dim=8, inner=MAMBA2, size=5),
    Case("lmuformer", dim=10, layers=2, window=9.0, convs=1, expansion=2, reads=True, skip=BATCH_NORM),
    Case("spiking_lmuformer", dim=4, window=9.0, convs=2, expansion=2, reads=True, skip=SPIKES),
    Case(FRAMES, inner={**CONV_S5, "blocks": 2, "groups": 2}, height=3, width=2),
    Case(
        FRAMES,
        inner={**CONV_S5, "activation": "resnet", "input_kernel": 1, "clip_eigenvalues": True},
        height=2,
        width=2,
    ),
    Case(FRAMES, inner=CONV_LSTM, height=3, width=2),
    Case(FRAMES, inner=FILM, height=2, width=4),
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
    Case("policy", observations=3, actions=4, dim=8, hidden=6, layers=["gru", LAYERS[1]]),
    Case("policy", observations=5, actions=2, discrete=True, dim=8, hidden=6, layers=["gru"], norm="layer"),
]
