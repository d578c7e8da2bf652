"""The models that are compared: WuNeng and its baselines, from a recipe, a directory or a preset.

The baselines are WuNeng's own class with one kind of heads taken away, sized to as many
parameters; ``llama`` is transformers' own Llama with the plain baseline's shapes, ``fla``
flash-linear-attention's own RWKV-7; llama.cpp runs both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wuneng.bench.llama_cpp import build_llama_cpp, llama_cpp_twin, require_llama_cpp
from wuneng.bench.llama_cpp_rwkv7 import (
    build_llama_cpp_rwkv7,
    llama_cpp_rwkv7_config,
    llama_cpp_rwkv7_twin,
)
from wuneng.bench.model_gate import Twin
from wuneng.bench.peer_models import (
    build_fla,
    build_llama,
    check_llama,
    fla_config,
    fla_extra,
    fla_twin,
    require_fla,
)
from wuneng.bench.request import DEFAULT_AGAINST, RECIPES, BenchRequest
from wuneng.built_in_arms import BUILT_IN_ARMS, arm_problem
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.errors import InputError, ModelError, nearest
from wuneng.head_counts import replaced_heads
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.counting import describe
from wuneng.model.matching import match
from wuneng.model.skeleton import Skeleton

__all__ = [
    "DEFAULT_MODEL",
    "PRESETS",
    "Architecture",
    "Comparison",
    "choose",
    "derive",
]

#: State and middle heads, wired as :data:`MIDDLE_WIRING` says, add 3.7 to 4.2 % to each of these.
PRESETS: dict[str, dict[str, Any]] = {
    "130m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "400m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1.5b": {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_state_heads": 4,
    },
    "7b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_state_heads": 4,
        "intermediate_size": 11008,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
}
_PRESET_VOCABULARY = 50304
#: Small enough for two cores to train it at 8k tokens in seconds.
DEFAULT_MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_state_heads": 2,
    "vocab_size": 256,
}


_LLAMAS = ("llama", "llama.cpp")
#: What llama.cpp runs: how it is built, and what it is compared with.
_BY_LLAMA_CPP: dict[str, tuple[Callable[[WuNengConfig], Any], Callable[[Any], Twin]]] = {
    "llama.cpp": (build_llama_cpp, llama_cpp_twin),
    "llama.cpp-rwkv7": (build_llama_cpp_rwkv7, llama_cpp_rwkv7_twin),
}
#: RWKV-7 as published, at the model's size.
_RWKV7_PEERS: dict[str, Callable[[WuNengConfig, str], WuNengConfig]] = {
    "fla": fla_config,
    "llama.cpp-rwkv7": llama_cpp_rwkv7_config,
}
#: Arms that are nobody's configuration, whatever a recipe calls its own.
_OTHERS = {*_RWKV7_PEERS, *_BY_LLAMA_CPP}


def _anywhere(device: torch.device) -> None:
    """Our own models run on every device."""


def _no_twin(model: Any) -> None:
    """Our own models, and transformers', are compared with themselves."""


@dataclass(frozen=True)
class Architecture:
    """One model of the comparison, not built yet."""

    arm: str
    config: WuNengConfig
    """Also for another project's model: the WuNeng configuration of the same shapes, which counts
    the work."""
    build: Callable[[], Any]
    """A float32 model on the CPU with random or trained weights."""
    parameters: int
    requires: Callable[[torch.device], None] = _anywhere
    """Raises Missing where the model cannot be built or does not run."""
    twin: Callable[[Any], Twin | None] = _no_twin
    """What the built model is compared with, where it has no reference of its own."""
    trains: bool = True
    """Whether it can be asked for gradients."""
    allocates_elsewhere: bool = False
    """Whether its memory is not torch's, so that no peak can be told."""

    @property
    def is_peer(self) -> bool:
        """Whether another project's code runs, part by part unlike ours."""
        return self.twin is not _no_twin

    def to_json(self) -> dict[str, Any]:
        """Ready for bench.json."""
        config = self.config
        counted = describe(config)
        counted["parts"]["state heads"] -= counted["parameters"] - self.parameters
        return {
            **counted,
            "parameters": self.parameters,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_state_heads": config.num_state_heads,
            "intermediate_size": config.intermediate_size,
            "vocab_size": config.vocab_size,
        }


@dataclass(frozen=True)
class Comparison:
    """The architectures side by side, and how a training step is set up."""

    name: str
    architectures: list[Architecture]
    training: dict[str, Any]
    """Fields of a recipe's ``training:`` that a benchmark's step takes over."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Arms that nobody named and that cannot be made of the model, and why."""


def choose(request: BenchRequest) -> Comparison:
    """What the request compares; nothing is allocated.

    Raises:
        InputError: an unknown preset, or a path that is neither a recipe nor a model.
        ModelError: the directory holds no WuNeng model.
    """
    named = request.against is not None
    against = DEFAULT_AGAINST if request.against is None else request.against
    arms = [arm for arm in against if arm not in ("mamba", "wind")]  # operators alone
    if not set(request.what) & {"prefill", "decode", "train"}:
        arms = [arm for arm in arms if arm not in _OTHERS]
    if request.model is None:
        name, fields = _preset(request.preset)
        return _comparison(name, WuNengConfig(**fields), arms, named=named)
    path = Path(request.model)
    if path.suffix in RECIPES:
        return _from_recipe(path, arms, named=named)
    return _from_directory(request.model, arms, named=named)


def derive(config: WuNengConfig, arm: str) -> WuNengConfig:
    """The baseline of that name, as recipes' built-in arms are: same width and depth. InputError
    where the arm cannot be made of this configuration."""
    if arm in _RWKV7_PEERS:
        derived = _RWKV7_PEERS[arm](config, arm)
        derived.check()
        return match(derived, config, "parameters")
    built_in = BUILT_IN_ARMS["mha" if arm in _LLAMAS else arm]
    _check_heads(config, arm)
    derived = config.changed(built_in.changes(config))
    if arm in _LLAMAS:
        check_llama(derived, arm)
    return match(derived, config, built_in.match)


def _check_heads(config: WuNengConfig, arm: str) -> None:
    heads, states = config.num_attention_heads, config.num_state_heads
    if arm == "replace" and min(replaced_heads(heads, states)) < 1:
        raise InputError(
            f"--against replace: {states} state heads cannot take the place of "
            f"{heads} attention heads"
        )
    if problem := arm_problem(arm, config):
        raise InputError(f"--against {arm}: {problem[0]}: {problem[1]}")
    if not heads and arm != "rwkv7":
        raise InputError(f"--against {arm}: the model has no attention heads to compare with")


def _comparison(
    name: str,
    config: WuNengConfig,
    arms: list[str],
    *,
    named: bool,
    first: str = "wuneng",
    build: Callable[[], Any] | None = None,
    configs: dict[str, WuNengConfig] | None = None,
    training: dict[str, Any] | None = None,
) -> Comparison:
    """``configs``: arms that a recipe states itself; the others are derived. Those that nobody
    ``named`` are left out where they cannot be, or are the model itself."""
    stated = configs or {}
    found = [_architecture(first, config, build)]
    left_out = {}
    for arm in arms:
        try:
            own = None if arm in _OTHERS else stated.get(arm)
            chosen = own or derive(config, arm)
        except (InputError, ValueError) as error:
            reason = str(error).removeprefix(f"--against {arm}: ")
            if named:
                raise InputError(f"--against {arm}: {reason}") from error
            left_out[arm] = reason
            continue
        if not named and not own and chosen.to_dict() == config.to_dict():
            left_out[arm] = "the model is one itself"
        else:
            found.append(_architecture(arm, chosen))
    return Comparison(name, found, training or {}, left_out)


def _architecture(
    arm: str, config: WuNengConfig, build: Callable[[], Any] | None = None
) -> Architecture:
    count = sum(p.numel() for p in Skeleton(config).parameters())
    if build is not None:
        return Architecture(arm, config, build, count)
    if arm in _RWKV7_PEERS:
        count -= fla_extra(config)
    if arm == "fla":
        return Architecture(arm, config, lambda: build_fla(config), count, require_fla, fla_twin)
    if arm in _BY_LLAMA_CPP:
        made, twin = _BY_LLAMA_CPP[arm]
        return Architecture(
            *(arm, config, lambda: made(config), count, require_llama_cpp, twin),
            trains=False,
            allocates_elsewhere=True,
        )
    own = build_llama if arm == "llama" else _random_weights
    return Architecture(arm, config, lambda: own(config), count)


def _random_weights(config: WuNengConfig) -> WuNengForCausalLM:
    """Every part says something: outputs that start at zero would pass any comparison."""
    drawn = copy.deepcopy(config)
    drawn.output_init, drawn.state_branch_init = "normal", None
    torch.manual_seed(0)
    return WuNengForCausalLM(drawn)


def _preset(preset: str | None) -> tuple[str, dict[str, Any]]:
    if preset is None:
        return "small", {**MIDDLE_WIRING, **DEFAULT_MODEL}
    if preset not in PRESETS:
        raise InputError(
            f"--preset: expected {', '.join(PRESETS)}; got {preset!r}.{nearest(preset, PRESETS)}"
        )
    return preset, {"vocab_size": _PRESET_VOCABULARY, **MIDDLE_WIRING, **PRESETS[preset]}


def _from_recipe(path: Path, arms: list[str], *, named: bool) -> Comparison:
    from wuneng.recipe import load_recipe
    from wuneng.train.plan import plan_run

    recipe = load_recipe(path)
    sources = None
    if recipe.names_models:
        from wuneng.convert import ConvertedSources

        sources = ConvertedSources()
    plan = plan_run(recipe, sources, text="none")  # how fast a model is does not depend on text
    first = plan.outline.reference
    stated = {name: arm.config for name, arm in plan.arms.items()}
    kept = (
        *("activation_checkpointing", "compile", "cuda_graph"),
        *("learning_rate", "weight_decay", "betas", "clip"),
    )
    return _comparison(
        plan.outline.name,
        stated[first],
        [arm for arm in arms if arm != first],
        named=named,
        first=first,
        configs=stated,
        training={name: getattr(plan.training, name) for name in kept},
    )


def _from_directory(model: str, arms: list[str], *, named: bool) -> Comparison:
    from wuneng.model.pretrained import load_configuration, load_whole_model
    from wuneng.records import find_model

    path = find_model(model)
    try:
        config = load_configuration(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: config.json cannot be read: {error}") from error
    if not isinstance(config, WuNengConfig):
        raise ModelError(
            f"{path} is a {config.model_type} model; `wuneng bench` compares WuNeng models. "
            "Convert it first, or use --preset"
        )

    def build() -> Any:
        return load_whole_model(path, allow_unexpected=True, dtype=torch.float32)

    return _comparison(path.name, config, arms, named=named, build=build)
