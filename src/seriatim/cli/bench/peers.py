"""The peers: whether each is installed, and how it is built. Weights are random; nothing is ever downloaded.

Their modules are imported by name when a row needs them: none of them is a requirement of this library.
"""

import os
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "EXTRA",
    "PACKAGES",
    "both",
    "gated_delta_rule",
    "installed",
    "llama",
    "mamba",
    "mamba2",
    "mamba2_scan",
    "mambapy_mamba",
    "mlstm_chunkwise",
    "parameters",
    "plain_lstm",
    "rg_lru",
    "s5_scan",
    "slstm_cell",
    "titans_memory",
]

EXTRA = "pip install 'seriatim[bench]'"
PACKAGES = ("transformers", "mambapy", "xlstm", "mlstm_kernels", "titans-pytorch", "s5-pytorch")


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def both(ours: nn.Module, peer: nn.Module) -> tuple[int, int]:
    """How many numbers each learns."""
    return parameters(ours), parameters(peer)


def _transformers() -> Any:
    """The package, offline and quiet: it warns that kernels for GPUs are missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    package = import_module("transformers")
    package.utils.logging.set_verbosity_error()
    return package


def _modelling(name: str) -> Any:
    _transformers()
    return import_module(f"transformers.models.{name}.modeling_{name}")


def mamba(vocab: int, dim: int, layers: int, use_mambapy: bool = False) -> nn.Module:
    """transformers' MambaForCausalLM: its scan is a loop over time, or mambapy's."""
    package = _transformers()
    config = package.MambaConfig(
        vocab_size=vocab, hidden_size=dim, num_hidden_layers=layers, use_mambapy=use_mambapy, pad_token_id=None,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model: nn.Module = package.MambaForCausalLM(config)
    return model


def mamba2(vocab: int, dim: int, layers: int, states: int, width: int) -> nn.Module:
    """transformers' Mamba2ForCausalLM, with heads of `width` features and one group."""
    package = _transformers()
    config = package.Mamba2Config(
        vocab_size=vocab, hidden_size=dim, num_hidden_layers=layers, state_size=states, head_dim=width, expand=2,
        num_heads=2 * dim // width, n_groups=1, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model: nn.Module = package.Mamba2ForCausalLM(config)
    return model


def llama(vocab: int, dim: int, layers: int, heads: int, size: int, longest: int) -> nn.Module:
    """transformers' LlamaForCausalLM on PyTorch's fused attention, as near to `size` parameters as its width allows."""
    package = _transformers()

    def build(width: int) -> nn.Module:
        config = package.LlamaConfig(
            vocab_size=vocab, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=width, max_position_embeddings=longest, tie_word_embeddings=True, pad_token_id=None,
            bos_token_id=None, eos_token_id=None, use_cache=False, attn_implementation="sdpa",
        )  # fmt: skip
        model: nn.Module = package.LlamaForCausalLM(config)
        return model

    each = 3 * layers * dim  # parameters a hidden unit
    return build(max(8, round((size - parameters(build(8))) / each / 8) * 8 + 8))


class _WithEnds(nn.Module):
    """mambapy's stack between an embedding and a tied head (its own language model needs a package for GPUs)."""

    def __init__(self, stack: nn.Module, norm: nn.Module, vocab: int, dim: int):
        super().__init__()
        self.embedding, self.stack, self.norm = nn.Embedding(vocab, dim), stack, norm
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.stack(self.embedding(tokens)))
        return hidden @ self.embedding.weight.T


def mambapy_mamba(vocab: int, dim: int, layers: int) -> nn.Module:
    """mambapy's Mamba with its parallel scan."""
    package = import_module("mambapy.mamba")
    config = package.MambaConfig(d_model=dim, n_layers=layers, pscan=True)
    return _WithEnds(package.Mamba(config), package.RMSNorm(dim, config.rms_norm_eps), vocab, dim)


def gated_delta_rule() -> Callable[..., Any]:
    """transformers' torch_chunk_gated_delta_rule(q, k, v, g, beta, chunk_size) of Qwen3-Next."""
    function: Callable[..., Any] = _modelling("qwen3_next").torch_chunk_gated_delta_rule
    return function


def mamba2_scan() -> Callable[..., Any]:
    """transformers' mamba2_chunk_scan(x, dt, A, B, C, chunk_size)."""
    function: Callable[..., Any] = _modelling("mamba2").mamba2_chunk_scan
    return function


def rg_lru(width: int, heads: int) -> Any:
    """transformers' RecurrentGemmaRglru, its gates drawn at random."""
    package, modelling = _transformers(), _modelling("recurrent_gemma")
    config = package.RecurrentGemmaConfig(hidden_size=width, lru_width=width, num_attention_heads=heads)
    layer: nn.Module = modelling.RecurrentGemmaRglru(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return layer


def s5_scan() -> Callable[..., Any]:
    """s5-pytorch's parallel scan of A (N,) and inputs (B, T, N), complex."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is compiled by torch.jit.script
        package = import_module("s5.s5_model")

    def scan(A: Tensor, inputs: Tensor) -> Tensor:
        def row(u: Tensor) -> Tensor:
            h: Tensor = package.associative_scan(package.binary_operator, (A.tile(u.size(0), 1), u))[1]
            return h

        return torch.vmap(row)(inputs)

    return scan


def mlstm_chunkwise(name: str) -> Callable[..., Any]:
    """The xlstm package's mLSTM(q, k, v, i, f, chunk_size) of that name."""
    function: Callable[..., Any] = import_module("mlstm_kernels.torch").get_mlstm_kernel(name)
    return function


def slstm_cell(dim: int, heads: int) -> nn.Module:
    """The xlstm package's sLSTMCell with backend "vanilla", in float32."""
    package = import_module("xlstm.blocks.slstm.cell")
    config = package.sLSTMCellConfig(
        hidden_size=dim, num_heads=heads, backend="vanilla", dtype="float32", enable_automatic_mixed_precision=False,
        recurrent_weight_init="standard", bias_init="standard",
    )  # fmt: skip
    cell: nn.Module = package.sLSTMCell(config)
    return cell


def titans_memory(dim: int, heads: int, chunk: int) -> nn.Module:
    """titans-pytorch's NeuralMemory: a memory learned while it reads, heads of equal width."""
    package = import_module("titans_pytorch")
    memory: nn.Module = package.NeuralMemory(dim=dim, heads=heads, dim_head=dim // heads, chunk_size=chunk)
    return memory


def plain_lstm(inputs: Tensor, recurrent: Tensor) -> Tensor:
    """An LSTM of several heads as a plain loop in PyTorch: one batched product a token, the rest by autograd.

    inputs (B, T, 4, H, D), recurrent (4, H, D, D); returns (B, T, H, D).
    """
    batch, _, gates, heads, dim = inputs.shape
    weight = recurrent.transpose(0, 1).reshape(heads, gates * dim, dim).transpose(1, 2)
    hidden = memory = inputs.new_zeros(heads, batch, dim)
    out = []
    for x in inputs.permute(1, 3, 0, 2, 4).flatten(-2).unbind(0):
        i, f, g, o = torch.baddbmm(x, hidden, weight).chunk(4, -1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * memory.tanh()
        out.append(hidden)
    return torch.stack(out).permute(2, 0, 1, 3)
