"""What a decoded token's one call reads of the delta rule's heads (`block_token` asks).

The arithmetic is ``delta_token.c``'s; the modules' is :mod:`wuneng.layers.state._delta_rule`'s.
Legend: D model width, S state heads, N head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wuneng.layers.norms import HeadRMSNorm
from wuneng.layers.plain_modules import is_linear, is_matrix, is_plain, is_weight
from wuneng.layers.state.base import StateHeads
from wuneng.ops import HeadOptions, HeadWeights, LinearPair
from wuneng.ops.native.delta_arguments import DeltaWeights


class DeltaToken(StateHeads):
    """A kind says where the logits of its decay, and its gate, come from."""

    computed_past_call = (*StateHeads.computed_past_call, "read", "log_decay", "gate")

    def note_wiring(self) -> None:
        """Decide once what the configuration decides; after the last parameter is registered."""
        self._count = len(self._parameters)
        self.options = HeadOptions(self.heads, self.head_dim, raw=False)
        #: Channels of the token before that are kept for the next call.
        self.carried = len(self.shifted_letters) * self.width
        #: Whether a decoded token may go through all layers at once (wuneng.layers.block_token).
        self.is_known = self.value_source != "attention_output" and not self.config.snapshots

    def decay_weights(self) -> tuple[LinearPair | None, Tensor | None]:
        """Of the decay's logits: low rank, or one ``[S, D]``."""
        raise NotImplementedError

    def gate_weights(self) -> tuple[LinearPair | None, Tensor | None]:
        """Of the gate, if there is one: sigma of a low-rank product, or silu of one
        ``[S * N, D]``."""
        raise NotImplementedError

    def can_be_read(self) -> bool:
        """Whether these heads are nothing but their weights: nobody watches or replaced a part."""
        norm = self._modules.get("o_norm")
        own = self._modules
        products = [name for name in own if name.endswith(("proj", "down", "up"))]
        if not all((is_linear if name == "g_up" else is_matrix)(own[name]) for name in products):
            return False
        narrow = (self.decay_weights()[0], self.gate_weights()[0])
        return (
            self.recurrence is None
            and is_plain(self, type(self))
            and is_plain(self.readout, nn.Identity)
            and len(self._parameters) == self._count
            and (norm is None or is_weight(norm, HeadRMSNorm))
            and self.has_plain_convolutions
            and len(self.shifted_letters) * self.width == self.carried
            and not any(x is not None and x.down.shape[0] % 4 for x in narrow)
        )

    def token_weights(self) -> tuple[Any, ...]:
        """Receptance, decay, rate and the rest, as a decoded token's call takes them.

        For heads that :meth:`can_be_read`; what RWKV-7's have not is in :meth:`delta_weights`.
        """
        return self.r_proj.weight, self.decay_weights()[0], None, HeadWeights()

    def wide_weights(self) -> tuple[Any, ...]:
        """As RWKV-7's: mixtures of the input and the value residual, which these heads have not,
        and between them the output gate, if it is low rank."""
        return (None,) * len("rwkvag"), self.gate_weights()[0], None

    def delta_weights(self) -> DeltaWeights:
        """What the heads have of their own."""
        own = self._parameters
        norm = self._modules["o_norm"] if self.config.state_norm == "group" else None
        beta: Any = self._modules["b_proj"]
        log_rate, step_bias = own["A_log"], own["dt_bias"]
        assert log_rate is not None
        assert step_bias is not None
        return DeltaWeights(
            beta.weight,
            self.decay_weights()[1],
            log_rate,
            step_bias,
            None if norm is None else norm._parameters["weight"],
            self.gate_weights()[1],
            tuple(own.get(f"shift_{letter}") for letter in "rkv"),
            self.shifted_letters,
            self.config.state_a_max,
            norm.eps if isinstance(norm, HeadRMSNorm) else 0.0,
        )
