"""The controls by name. Nothing here imports torch.

With y_t = r_t S_t^T what a state head reads at token t (before normalisation, bonus and fusion):

    zero        y_t = 0
    permute     y_t is that of another sequence, half a batch away
    donor       y_t = r_t S'_t^T: the head's own question put to another sequence's state S'
    layers      y_t = r_t S'_t^T: S' is the state of the next layer that has one (the last layer's
                is the first's), as it is over the same tokens in the untouched model
    frozen:K    the state stays as it is after the first K tokens of its sequence
    reset:K     the state is zero again before the tokens K, 2K, 3K... of its sequence

and, beside the state:

    attention   the standard heads say nothing, A = 0. Where a state head's values are made of A
                (``state_value_source: attention_output``) it has none.
    head        one head alone says nothing: A_h = 0, R_s = 0 (the bonus with it) or Mid_m = 0

Only what is named changes. The other sequence of ``permute`` and ``donor`` is another item, so
their statistics stay those of trained states and only the link to the text is gone; nothing of a
sequence's future reaches its past. Token shift and convolutions remember their last tokens whatever
becomes of the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from wuneng.errors import InputError, nearest

__all__ = [
    "KEEP",
    "STATE_CONTROLS",
    "WRONG_STATES",
    "Control",
    "Head",
    "parse_control",
    "parse_state_control",
]

#: Controls of the state, as ``--state`` takes them; those in ``COUNTED`` with a number of tokens.
STATE_CONTROLS = ("zero", "permute", "donor", "layers", "frozen", "reset")
COUNTED = ("frozen", "reset")
#: Another text's state in place of the right one.
WRONG_STATES = ("permute", "donor")


class Head(NamedTuple):
    """One head of a model, layers and heads counted from 0."""

    part: Literal["attention", "state", "middle"]
    layer: int
    number: int


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        kind: "keep" changes nothing; else one of the names above.
        tokens: K of "frozen" and "reset".
        head: which one "head" silences.
    """

    kind: str
    tokens: int | None = None
    head: Head | None = None

    def __str__(self) -> str:
        if self.head is not None:
            return f"{self.head.part} head {self.head.layer}.{self.head.number}"
        return self.kind if self.tokens is None else f"{self.kind}:{self.tokens}"

    @property
    def file_part(self) -> str:
        """How the names of files spell it."""
        return str(self).replace(":", "-").replace(" ", "-")

    @property
    def needs_company(self) -> bool:
        """Whether every forward call needs two sequences at least."""
        return self.kind in WRONG_STATES

    @property
    def needs_whole_texts(self) -> bool:
        """Whether beginnings that several items share may not be computed once for all of them."""
        return self.kind in ("layers", *COUNTED)

    @property
    def of_state(self) -> bool:
        """Whether it is a control of the state, which a model without state heads has not."""
        return self.kind in STATE_CONTROLS


KEEP = Control("keep")


def parse_state_control(text: str) -> Control:
    """``--state``'s control. InputError for what is none, or has a number too many or too few."""
    control = parse_control(text, "--state", ("keep", *STATE_CONTROLS))
    if control.kind in COUNTED and control.tokens is None:
        raise InputError(
            f"--state: {control.kind} needs a number of tokens, as in {control.kind}:64"
        )
    return control


def parse_control(text: str, flag: str, known: tuple[str, ...]) -> Control:
    """``NAME`` or ``NAME:K`` as a control; a name without its number is left open.

    Args:
        flag: the option, for the message.
        known: the names that it takes.

    Raises:
        InputError: an unknown name, or a number where none belongs or that is none.
    """
    from wuneng.recipe.sizes import parse_size

    name, colon, number = text.partition(":")
    if name not in known:
        shown = ", ".join(f"{one}:K" if one in COUNTED else one for one in known)
        raise InputError(f"{flag}: expected {shown}, got {text!r}.{nearest(name, known)}")
    if not colon:
        return Control(name)
    if name not in COUNTED:
        raise InputError(f"{flag}: {name} takes no number, got {text!r}")
    try:
        tokens = parse_size(number)
    except InputError:
        tokens = 0
    if tokens < 1:
        raise InputError(
            f"{flag}: {name} takes a number of tokens from 1, as in {name}:64, got {text!r}"
        )
    return Control(name, tokens)
