"""What an arm's network looks like: the fields of ``model:`` in a recipe.

Letters: D ``hidden_size``, H ``num_attention_heads``, G ``num_key_value_heads``,
S ``num_state_heads``, N ``head_dim``. Names follow transformers where it has one. Rules that tie
several fields together are in ``wuneng.recipe.consistency``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from wuneng.default_wiring import KINDS_OWN, MIDDLE_WIRING, first_outputs, shifts_attention
from wuneng.kinds import check_kind, kind_names
from wuneng.layer_pattern import shape_problem
from wuneng.limits import MOST_TAPS
from wuneng.recipe.settings import Choices, Settings
from wuneng.recipe.sizes import (
    Count,
    Fraction,
    Heads,
    Layers,
    PositiveCount,
    Real,
    Vocabulary,
    WideWidth,
    Width,
)

__all__ = ["LEFT_OPEN", "PAPER_WIRING", "ModelSettings"]

#: What ``preset: paper`` sets for the fields that a recipe leaves alone.
PAPER_WIRING: dict[str, Any] = {
    **{name: MIDDLE_WIRING[name] for name in ("state_a_max", "state_output_gate")},
    "state_key_source": "attention",
    "state_value_source": "attention_output",
    "state_removal_key": "own",
    "token_shift": "none",
    "state_norm": "none",
    "state_bonus": False,
    "state_reads": 2,
    "state_output_scale": "scalar",
    "cross_head": "none",
    "ffn": "mlp",
    "hidden_act": "gelu",
}

#: Fields that are decided by others where they are null, which is as if they were not there.
LEFT_OPEN = frozenset({"output_init", "attention_token_shift", *KINDS_OWN["rwkv7"]})

PositiveReal = Annotated[Real, Gt(0.0)]
Initial = Literal["zero", "small", "normal"]
Taps = Annotated[Count, Le(MOST_TAPS)]


def _kind_of(room: Literal["state", "middle"]) -> Any:
    """A name of a kind of state or middle heads, whichever there are."""

    def check(name: str) -> str:
        if check_kind(room, name):
            *others, last = map(repr, kind_names(room))
            expected = f"{', '.join(others)} or {last}"
            raise PydanticCustomError("kind", "{expected}", {"expected": expected})
        return name

    return Annotated[str, AfterValidator(check), Choices(lambda: kind_names(room))]


def _layers(value: Any) -> Any:
    if value is not None and (wrong := shape_problem(value)):
        expected = wrong.partition(", got ")[0].removeprefix("must be ").removeprefix("must ")
        raise PydanticCustomError("layers", "{expected}", {"expected": expected})
    return value


class ModelSettings(Settings):
    """One arm's architecture; every field has a default, so a recipe states what it changes."""

    preset: Literal["none", "paper"] = "none"
    """``paper``: the paper's wiring for every field that the recipe does not set itself."""

    hidden_size: Width = 256
    """D, the width of the residual stream."""
    num_hidden_layers: Layers = 6
    """Number of blocks."""
    intermediate_size: WideWidth | None = None
    """Width of the feed-forward layer; default 8/3 D (4 D for mlp and rwkv7), rounded up to 32."""
    vocab_size: Vocabulary | None = None
    """Number of token ids; default what the tokenizer or the synthetic task needs."""
    max_position_embeddings: PositiveCount = 2048
    """Longest sequence that the model is meant for."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention and before the feed-forward layer."""
    rms_norm_eps: PositiveReal = 1e-5
    """Epsilon of that normalisation."""
    embedding_norm: bool = False
    """The same normalisation once more after the embedding (RWKV-7's ``ln0``)."""
    ffn: Literal["swiglu", "mlp", "rwkv7"] = "swiglu"
    """Feed-forward layer: gated, two matrices, or RWKV-7's squared ReLU."""
    hidden_act: Literal[
        "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "mish"
    ] = "silu"
    """Activation of the feed-forward layer, by its transformers name."""
    mlp_bias: bool = False
    """Biases in the feed-forward layer."""
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output projection."""
    initializer_range: PositiveReal | None = None
    """Standard deviation of the initial weights outside the state heads; default 0.55 / sqrt(D),
    which is 0.02 at a width of 768."""
    output_init: Initial | None = None
    """Initial output projections, of attention, of state and middle heads, of the feed-forward
    layer: zero, the default with state heads; normal, with ``initializer_range``, the default of
    attention alone; small, that divided by sqrt(2 L)."""

    num_attention_heads: Heads = 4
    """H, standard attention heads; 0 leaves the state heads alone."""
    num_key_value_heads: Annotated[Heads, Field(ge=1)] | None = None
    """G, heads of keys and values; default H."""
    head_dim: Width | None = None
    """N, size of an attention head; default D / H."""
    rope_theta: PositiveReal = 10000.0
    """Base of the rotary position embedding."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling as transformers spells it: ``rope_type``, ``factor``, and so on."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_output_bias: bool = False
    """A bias on attention's output projection."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head."""
    sliding_window: PositiveCount | None = None
    """Tokens that attention looks back; default all."""
    sliding_window_layers: list[Count] | None = None
    """Layers (from 0) that have the window; default all."""
    attention_token_shift: bool | None = None
    """Token shift on attention's own keys and values: default true beside state heads, which see
    the token before too, and false without them (true is then the ``mha-shift`` control)."""
    attention_short_conv: Taps = 0
    """Taps of a short causal convolution of attention's queries, keys and values; 0: without (the
    ``mha-conv`` control)."""
    attention_output_gate: bool = False
    """A gate on attention's output, sigma(x W) for every channel: a control of `state_output_gate`;
    built-in arms of plain attention go without."""
    attention_dropout: Fraction = 0.0
    """Dropout on attention weights during training."""

    layers: Annotated[list[str] | dict[str, list[str]] | None, BeforeValidator(_layers)] = None
    """Which heads each layer has: ``hybrid``, ``attention`` or ``state``, as a list or as
    ``{pattern: [...]}``, which is repeated; default all that there are in every layer."""
    num_state_heads: Heads = 2
    """S, state heads of a layer that has them; 0 is plain attention."""
    state_kind: _kind_of("state") = "rwkv7"  # type: ignore[valid-type]
    """What the state heads are: RWKV-7's, Gated DeltaNet's, Kimi Delta Attention's."""
    state_options: dict[str, Any] | None = None
    """Settings that a kind of state heads has of its own."""
    state_head_dim: Width | None = None
    """Size of a state head; default N."""
    state_layers: list[Count] | None = None
    """Layers (from 0) that have state heads; default all."""
    state_key_source: Literal["attention", "own"] = "own"
    """Where the state's key comes from: attention's key before RoPE, or its own projection."""
    state_value_source: Literal["attention", "attention_output", "own"] = "attention"
    """Where the state's value comes from."""
    state_removal_key: Literal["shared", "own"] = "shared"
    """Whether the key that is erased shares the key's projection."""
    token_shift: Literal["post", "pre", "none"] = "post"
    """Mix each token with the one before it: after the projections, before them, or not."""
    token_shift_on: Annotated[str, StringConstraints(pattern="^[rkv]*$")] = "rkv"
    """Which of read vector, key and value the shift after the projections touches."""
    state_short_conv: Taps = 0
    """Taps of a short causal convolution of the state's read vector, key and value; 0: without."""
    state_a_max: Annotated[Real, Field(ge=1.0, le=2.0)] | None = None
    """Upper end of the in-context learning rate (beta): 1, or 2 to allow negative eigenvalues,
    which is the default of a kind that has the choice."""
    state_reads: Annotated[Count, Field(ge=1, le=2)] = 1
    """2: what is read is the read vector of a second read, y = S (W S r) with W learned; rwkv7 only
    (our reading of the paper's W S X)."""
    decay_rank: Width | None = None
    """Rank of the decay's low-rank projection; default by RWKV-7's rule."""
    rate_rank: Width | None = None
    """Rank of the in-context learning rate's projection; default by RWKV-7's rule."""
    value_rank: Width | None = None
    """Rank of the value residual's projection; default by RWKV-7's rule."""
    gate_rank: Width | None = None
    """Rank of the output gate's projection; default by RWKV-7's rule."""
    state_output_gate: bool | None = None
    """A gate on the state heads' output; our kinds have one by default."""
    state_gate_sigmoid: Literal["hidden", "output"] | None = None
    """Where the sigma of that gate stands, if there is one: ``hidden``, between its two matrices
    (RWKV-7); ``output``, after them and a bias (Kimi Delta Attention), which measured better with
    rwkv7 and is the default of both."""
    state_value_residual: bool = False
    """RWKV-7's residual from the first layer's values."""
    state_bonus: bool = True
    """RWKV-7's bonus for the current token."""
    state_norm: Literal["group", "none"] = "group"
    """Group normalisation of what each state head reads."""
    state_output_scale: Literal["head", "scalar"] = "head"
    """The learnable scale of the state's output: one per head, or one for all."""
    state_init: Literal["even", "published"] | None = None
    """Initial values within the state heads: the publication's, or (rwkv7, whose default it is)
    decays spread evenly and readouts of full size, whatever the depth."""
    state_branch_init: Initial | None = None
    """Initial output weights of state and middle heads, where they are not as ``output_init``
    says."""
    cross_head: _kind_of("middle") = "none"  # type: ignore[valid-type]
    """How middle heads mix attention and state (our reading of the paper: gated, concat, additive);
    none: without them, which measured better on text at equal parameters."""
    snapshots: Heads = 0
    """Earlier states that a state head reads beside the present one (our reading of the paper)."""
    snapshot_every: PositiveCount = 64
    """Tokens between those states, a multiple of 16."""

    def settled(self) -> ModelSettings:
        """A copy that says what is meant where nothing was said, of a model that starts from
        nothing: a file written today then means it for good."""
        heads = self.num_attention_heads, self.num_state_heads
        meant = {
            "output_init": first_outputs(self.num_state_heads),
            "attention_token_shift": shifts_attention(*heads, self.token_shift),
            **KINDS_OWN.get(self.state_kind, {}),
        }
        return self.model_copy(update={k: v for k, v in meant.items() if getattr(self, k) is None})

    @property
    def attention_head_size(self) -> int:
        """N: ``head_dim``, or D / H where it is left out (64 without attention heads)."""
        if self.head_dim is not None:
            return self.head_dim
        if self.num_attention_heads:
            return self.hidden_size // self.num_attention_heads
        return self.state_head_dim or 64

    @property
    def state_head_size(self) -> int:
        """``state_head_dim``, or N where it is left out."""
        return self.state_head_dim or self.attention_head_size
