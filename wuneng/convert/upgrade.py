"""What a recipe's ``init_from`` names, as a WuNeng that training can load.

Training is below this room and is handed :class:`ConvertedSources` by the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote

from wuneng.convert.graft import GraftSettings
from wuneng.convert.run import Request, convert
from wuneng.convert.source import Located, locate
from wuneng.convert.transformer import from_transformer
from wuneng.errors import InputError, ModelError
from wuneng.model import WuNengConfig
from wuneng.recipe import ModelSettings
from wuneng.train.starting_point import OwnModels

__all__ = ["ConvertedSources", "graft_of"]

#: Fields of ``model:`` that have a field of their own in GraftSettings.
_NAMED = {
    "num_state_heads": "state_heads",
    "state_key_source": "key_source",
    "state_value_source": "value_source",
} | {name: name for name in ("state_layers", "state_head_dim", "cross_head", "snapshots")}
#: The others that concern state heads, and the one thing that attention can be given.
_OTHERS = (
    *("state_kind", "state_options", "state_short_conv", "layers", "state_removal_key"),
    *("token_shift", "token_shift_on", "state_a_max", "state_reads"),
    *("decay_rank", "rate_rank", "value_rank", "gate_rank"),
    *("state_output_gate", "state_gate_sigmoid", "state_value_residual", "state_bonus"),
    *("state_norm", "state_output_scale", "snapshot_every", "state_init"),
    "attention_token_shift",
)


class ConvertedSources:
    """Transformers are converted, with their logits compared; WuNeng models are taken as they are.

    Satisfies ``wuneng.train.starting_point.Sources``.
    """

    def __init__(self, *, check: bool = True) -> None:
        """``check``: compare a source's files with their checksums before it is converted."""
        self._check = check

    def config(self, source: str, model: ModelSettings) -> WuNengConfig:
        """The architecture that starting from ``source`` with the heads of ``model`` gives.

        Raises:
            ModelError: nothing usable is at ``source``.
            InputError: the heads do not fit it.
        """
        located = _located(source)
        if _as_it_is(located, model):
            return OwnModels().config(str(located.path), model)
        try:
            conversion = from_transformer(located, graft_of(model), dtype=None, seed=0)
        except InputError as error:
            if isinstance(error.__cause__, ValueError):  # named by config fields, not by options
                raise InputError(f"{source}: {error.__cause__}") from error
            raise
        config: WuNengConfig = conversion.config
        return config

    def directory(
        self,
        source: str,
        model: ModelSettings,
        destination: Path,
        seed: int,
        note: Callable[[str], None],
    ) -> Path:
        """A WuNeng directory to load; made at ``destination``, unless it is there already.

        Raises:
            ModelError, InputError: as ``config``.
            VerificationError: the converted model's logits differ from the source's.
            DiskError: the disk is full.
        """
        located = _located(source)
        if _as_it_is(located, model):
            return located.path
        if (destination / "config.json").is_file():
            return destination  # of an earlier session: conversions appear complete or not at all
        graft = graft_of(model)
        request = Request(
            source,
            destination,
            graft=graft,
            seed=seed,
            check_source=self._check,
            new_apart=True,
            skip_check="--no-verify",  # of `wuneng train`, for which this converts
        )
        outcome = convert(request)
        difference = max(check.max_abs_logit_difference for check in outcome.checks)
        record = outcome.record
        note(
            f"{record['what']}: {source}: {record['added_parameters']:,} new parameters "
            f"(+{record['added_percent']:.1f} %), largest difference of a logit {difference:.3g}"
        )
        return outcome.directory

    def converts(self, source: str, model: ModelSettings) -> bool:
        """Whether ``directory`` writes one: a WuNeng to which nothing is added serves as it is."""
        return not _as_it_is(_located(source), model)


def graft_of(model: ModelSettings) -> GraftSettings:
    """The heads that a recipe asks for: fields it leaves alone have a graft's defaults, but for the
    number of heads, which is a recipe's."""
    set_fields = {name: getattr(model, name) for name in model.model_fields_set}
    named = {ours: set_fields[name] for name, ours in _NAMED.items() if name in set_fields}
    named["state_heads"] = model.num_state_heads
    if named.get("state_layers") is not None:
        named["state_layers"] = tuple(named["state_layers"])
    given = {name: set_fields[name] for name in _OTHERS if name in set_fields}
    return GraftSettings(**named, others=given)


def _located(source: str) -> Located:
    located = locate(source)
    if located.is_rwkv7 or located.is_distributed:
        raise ModelError(
            f"init_from: {source} is of kind {located.kind}; make a WuNeng of it first: "
            f"wuneng convert {quote(source)} DIRECTORY"
        )
    return located


def _as_it_is(located: Located, model: ModelSettings) -> bool:
    """Whether the source is a WuNeng to which nothing is added."""
    if not located.is_wuneng:
        return False
    return bool(located.config.get("num_state_heads", 2)) or model.num_state_heads == 0
