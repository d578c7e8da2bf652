"""What a benchmark is asked to measure, checked before anything is built."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from wuneng.built_in_arms import BUILT_IN_ARMS
from wuneng.errors import InputError, nearest, shortened
from wuneng.limits import LARGEST_COUNT, MOST_THREADS

__all__ = [
    "ARMS",
    "DEFAULT_AGAINST",
    "DEFAULT_SECONDS",
    "DTYPES",
    "RECIPES",
    "TRAININGS",
    "WHATS",
    "BenchRequest",
    "make_request",
    "parse_lengths",
    "parse_names",
    "parse_percent",
]

WHATS = ("ops", "prefill", "decode", "train", "parts")
DEFAULT_WHATS = ("ops", "prefill", "decode", "train")
#: Arms that can stand beside the model: the built-in ones, and other projects'. ``fla``:
#: flash-linear-attention's operators and RWKV-7 model; ``mamba``: mamba-ssm's operators;
#: ``wind``: wind_rwkv's WKV-7 kernel; ``llama.cpp`` and ``llama.cpp-rwkv7``: a Llama and an
#: RWKV-7 run by llama-cpp-python.
ARMS = (
    *(arm for arm in BUILT_IN_ARMS if arm != "wuneng"),
    *("llama", "llama.cpp", "llama.cpp-rwkv7", "fla", "mamba", "wind"),
)
DEFAULT_AGAINST = ("mha", "rwkv7")
#: Ways of a training step.
TRAININGS = ("compile", "cuda_graph")
DTYPES = ("auto", "fp32", "bf16", "fp16")
DEFAULT_LENGTH = "4k"
#: Roughly how long all timing together may take; slow cases are still repeated three times.
DEFAULT_SECONDS = 40.0

#: ``--model`` with one of these suffixes is a recipe.
RECIPES = (".yaml", ".yml")

_FACTORS = {"": 1, "k": 1024, "m": 1024**2}
_LENGTH = re.compile(r"([0-9]{1,20})\s*([kKmM]?)")
_SHORTEST = 16
_SHORTEST_SUBLENGTH = 128


@dataclass(frozen=True)
class BenchRequest:
    """One benchmark. Lengths, batches and thread counts are positive."""

    seq_lens: tuple[int, ...]
    what: tuple[str, ...] = DEFAULT_WHATS
    model: str | None = None
    """A recipe, a model or run directory; None: the preset, or a small model."""
    preset: str | None = None
    against: tuple[str, ...] | None = None
    """None: ``DEFAULT_AGAINST``, as far as the model has what they stand beside. An arm that is
    named and cannot be made of the model is refused."""
    batches: tuple[int, ...] = (1,)
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    heads: int | None = None
    """Heads of the operators; None: the model's attention heads."""
    training: tuple[str, ...] = ()
    """Fields of a recipe's ``training:`` that are switched on in training steps."""
    seconds: float = DEFAULT_SECONDS

    def to_json(self) -> dict[str, Any]:
        """Ready for bench.json."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BenchRequest:
        """What :meth:`to_json` wrote, as the schema has it; keys of later versions are passed over.

        Raises:
            InputError: it names an arm that nothing can stand beside.
        """
        if value.get("against"):
            parse_names("request.against of the record", ",".join(value["against"]), ARMS)
        known = {f.name for f in fields(cls)}
        chosen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in known
        }
        return cls(**chosen)


def make_request(
    *,
    seq_len: str | None = None,
    what: str | None = None,
    model: str | None = None,
    preset: str | None = None,
    against: str | None = None,
    batch: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    heads: int | None = None,
    training: str | None = None,
    seconds: float | None = None,
    base: BenchRequest | None = None,
) -> BenchRequest:
    """A request from command-line text; what is left out is ``base``'s, or the default.

    Raises:
        InputError: a value is malformed or unknown; the message names the option.
    """
    if model is not None and preset is not None:
        raise InputError("--model and --preset: give one of them, not both")
    given: dict[str, Any] = {
        "seq_lens": None if seq_len is None else _with_sublengths(seq_len),
        "what": None if what is None else parse_names("--what", what, WHATS),
        "against": None if against is None else _against(against),
        "batches": None if batch is None else _batches(batch),
        "device": device,
        "dtype": None if dtype is None else parse_names("--dtype", dtype, DTYPES)[0],
        "threads": _positive("--threads", threads, MOST_THREADS),
        "heads": _positive("--heads", heads),
        "training": None if training is None else parse_names("--training", training, TRAININGS),
        "seconds": seconds,
    }
    if model is not None or preset is not None:
        given |= {"model": model, "preset": preset}
    else:
        given |= {"model": base.model, "preset": base.preset} if base else {}
    start = base or BenchRequest(seq_lens=_with_sublengths(DEFAULT_LENGTH))
    chosen = {k: v for k, v in given.items() if v is not None or k in ("model", "preset")}
    return BenchRequest(**{f.name: getattr(start, f.name) for f in fields(start)} | chosen)


def parse_lengths(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """``"1k,2048"`` as ``(1024, 2048)``, ascending, without repetition.

    Raises:
        InputError: an item is not a whole number of at least ``least``, possibly with the suffix
            k or M.
    """
    lengths = set()
    for item in text.split(","):
        match = _LENGTH.fullmatch(item.strip())
        length = int(match[1]) * _FACTORS[match[2].lower()] if match else 0
        if not least <= length <= LARGEST_COUNT:
            raise InputError(
                f"{option}: expected numbers such as 16 or 8k (k = 1024), at most 2**62 and "
                f"at least {least}, got {shortened(item.strip())!r}"
            )
        lengths.add(length)
    return tuple(sorted(lengths))


def parse_names(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Comma-separated names, each one of ``known``. InputError names the nearest."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise InputError(
                f"{option}: expected {', '.join(known)}; got {name!r}.{nearest(name, known)}"
            )
    return names


def parse_percent(option: str, text: str) -> float:
    """``"10%"`` or ``"10"`` as 0.1. InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", text)
    if match is None:
        raise InputError(f"{option}: expected a percentage such as 10%, got {text!r}")
    return float(match[1]) / 100


def _with_sublengths(text: str) -> tuple[int, ...]:
    """One length alone is measured at its eighth, quarter and half too: growth needs several."""
    lengths = parse_lengths("--seq-len", text, _SHORTEST)
    if len(lengths) > 1:
        return lengths
    longest = lengths[0]
    shorter = {longest // d for d in (8, 4, 2) if longest // d >= _SHORTEST_SUBLENGTH}
    return tuple(sorted(shorter | {longest}))


def _against(text: str) -> tuple[str, ...]:
    return () if text.strip() == "none" else parse_names("--against", text, ARMS)


def _batches(text: str) -> tuple[int, ...]:
    return parse_lengths("--batch", text)


def _positive(option: str, value: int | None, most: int = LARGEST_COUNT) -> int | None:
    if value is not None and value < 1:
        raise InputError(f"{option}: expected 1 or more, got {value}")
    if value is not None and value > most:
        raise InputError(f"{option}: expected at most {most}, got {shortened(str(value))}")
    return value
