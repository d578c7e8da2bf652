"""flash-linear-attention's RWKV-7 model as an arm: its size, the model, the twin that checks it.

The arm has the compared model's vocabulary, width, depth and head size, and a feed-forward widened
until the parameters agree. It is built and called through fla's own classes. For the check its
weights go through the mapping that converts fla's checkpoints into our pure state model
(``wuneng.convert.rwkv7``), and that runs the token loop in float32.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.bench.engine import Unsupported
from wuneng.bench.model_gate import Twin
from wuneng.bench.peers import FLA, load_peer, require_gpu
from wuneng.errors import InputError, ModelError
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.skeleton import Skeleton

if TYPE_CHECKING:
    from wuneng.convert.families import Family
    from wuneng.convert.tensor_files import TensorInfo

__all__ = [
    "RWKV7_TWIN",
    "build_fla",
    "build_llama",
    "check_llama",
    "fla_config",
    "fla_extra",
    "fla_twin",
    "require_fla",
]

_EPS = 1e-5
#: What our model has and RWKV-7 has not: lambda of every state head, which is one here.
_OURS_ALONE = "cross_head.scale"
RWKV7_TWIN = "the same weights in WuNeng's RWKV-7: token loop, float32"


def fla_config(config: WuNengConfig, arm: str = "fla") -> WuNengConfig:
    """RWKV-7 as fla builds it, as wide and deep as ``config``; the feed-forward not yet matched.

    Raises:
        InputError: heads of that size do not fill the width.
    """
    size = config.state_head_dim or config.head_dim or 64
    if config.hidden_size % size:
        raise InputError(
            f"--against {arm}: RWKV-7 needs heads that fill the width; heads of {size} do not fill "
            f"{config.hidden_size}"
        )
    from wuneng.convert.rwkv7 import RWKV7_INITIAL, RWKV7_WIRING

    heads = config.hidden_size // size
    return WuNengConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        head_dim=size,
        num_state_heads=heads,
        state_head_dim=size,
        rms_norm_eps=_EPS,
        state_norm_eps=size * _EPS,
        embedding_norm=True,
        tie_word_embeddings=config.tie_word_embeddings,
        max_position_embeddings=config.max_position_embeddings,
        **RWKV7_INITIAL,
        **RWKV7_WIRING,
    )


def fla_extra(config: WuNengConfig) -> int:
    """Parameters of our model of this configuration that RWKV-7 has not."""
    named = Skeleton(config).named_parameters()
    return sum(p.numel() for name, p in named if name.endswith(_OURS_ALONE))


def require_fla(device: torch.device) -> None:
    """Whether fla's model runs here.

    Raises:
        Missing: flash-linear-attention is not installed or does not load here.
        Unsupported: there is no GPU.
    """
    load_peer(FLA, "fla.models.rwkv7")
    require_gpu(FLA, device)


def build_fla(config: WuNengConfig) -> Any:
    """fla's ``RWKV7ForCausalLM`` in float32 on the CPU, with its own random weights.

    ``config`` is :func:`fla_config`'s. Matrices that start at zero (every low-rank pair, the output
    and the feed-forward's second) are drawn, so that the check sees what they do, and the
    embedding too, whose start of 1e-4 makes its gradient drown all others'.

    Raises:
        Missing: flash-linear-attention is not installed or does not load here.
        Unsupported: it cannot build a model of one layer.
    """
    module = load_peer(FLA, "fla.models.rwkv7")
    if config.num_hidden_layers < 2:
        raise Unsupported(f"{FLA}'s RWKV-7 needs two layers or more")  # divides by L - 1

    class BatchRWKV7ForCausalLM(module.RWKV7ForCausalLM):  # type: ignore[misc,name-defined]
        """Takes the argument for packed documents, which a benchmark's batches do not use."""

        def forward(self, *args: Any, document_ids: None = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    _allow_recompilation()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each layer, about other versions of fla
        model = BatchRWKV7ForCausalLM(module.RWKV7Config(**_fla_settings(config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter.abs().max() < 1e-3:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model


def _allow_recompilation() -> None:
    """Some of fla's functions are compiled, anew for each mode of autograd and for some shapes.

    Beyond torch's limit of eight they would run uncompiled from then on, which is not fla's speed.
    """
    settings: Any = importlib.import_module("torch._dynamo").config
    settings.recompile_limit = max(settings.recompile_limit, 64)


def _fla_settings(config: WuNengConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "head_dim": config.state_head_dim,
        "intermediate_size": config.intermediate_size,
        "decay_low_rank_dim": config.decay_rank,
        "a_low_rank_dim": config.rate_rank,
        "v_low_rank_dim": config.value_rank,
        "gate_low_rank_dim": config.gate_rank,
        "norm_eps": _EPS,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        # its penalty on large logits would be in the gradients, and not in its loss
        "use_l2warp": False,
        "fuse_cross_entropy": False,
    }


class _Weights:
    """A model's parameters as the conversion reads a checkpoint's."""

    def __init__(self, model: nn.Module) -> None:
        from wuneng.convert.tensor_files import TensorInfo

        self.parameters = dict(model.named_parameters())
        self.tensors: dict[str, TensorInfo] = {
            name: TensorInfo(tuple(p.shape), p.dtype, Path(FLA))
            for name, p in self.parameters.items()
        }

    def read(self, name: str) -> Tensor:
        return self.parameters[name].detach()


def fla_twin(model: Any) -> Twin:
    """The weights of fla's ``model`` in ours, float32, on the same device.

    Raises:
        Unsupported: this version's tensors or settings do not map onto RWKV-7 as we know it.
    """
    from wuneng.convert.plan import model_shapes
    from wuneng.convert.rwkv7 import read_rwkv7

    weights = _Weights(model)
    try:
        checkpoint = read_rwkv7(weights, FLA, model.config.to_dict())
        routes = checkpoint.routes(model_shapes(checkpoint.config))
    except ModelError as error:
        raise Unsupported(f"{FLA}'s model cannot be checked against ours: {error}") from error

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            routes[name].target: tensor if change is None else change(tensor)
            for name, tensor in tensors.items()
            for change in (routes[name].change,)
        }

    with init.no_init_weights():  # every one is overwritten below
        twin = WuNengForCausalLM(checkpoint.config)
        twin.tie_weights()
    twin.to(next(model.parameters()).device)
    arrived = renamed({name: weights.read(name) for name in weights.tensors})
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith(_OURS_ALONE):
                parameter.fill_(1.0)
            elif name in arrived:
                parameter.copy_(arrived[name])
            else:
                raise Unsupported(f"{FLA}'s model cannot be checked against ours: it has no {name}")
    return Twin(twin.eval(), renamed, RWKV7_TWIN)


def build_llama(config: WuNengConfig) -> Any:
    """transformers' Llama with the shapes of a plain-attention WuNeng.

    Raises:
        InputError: a Llama cannot compute what that model does.
    """
    from transformers import LlamaForCausalLM

    from wuneng.convert.architectures import as_stock

    class BatchLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
        """Takes the argument for packed documents, which a benchmark's batches do not use."""

        def forward(self, *args: Any, document_ids: None = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    llama = as_stock(config, check_llama(config))
    torch.manual_seed(0)
    return BatchLlamaForCausalLM(llama)


def check_llama(config: WuNengConfig, arm: str = "llama") -> Family:
    """Llama's record. InputError where no Llama computes what ``config`` describes."""
    from wuneng.convert.architectures import does_not_fit
    from wuneng.convert.families import FAMILIES

    llama = FAMILIES["llama"]
    reason = does_not_fit(config, llama)
    if reason:
        raise InputError(f"--against {arm}: no Llama has this model's wiring ({reason})")
    return llama
