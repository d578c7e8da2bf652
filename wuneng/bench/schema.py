"""The schema of bench.json, and checking a file against it.

``docs/bench-schema.json`` is :data:`SCHEMA`, written by ``python -m wuneng.bench schema``. The
check understands the few keywords of JSON Schema that it uses, so that comparing with an old file
needs no package for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wuneng.bench.request import DTYPES, TRAININGS, WHATS
from wuneng.limits import MOST_THREADS

__all__ = ["SCHEMA", "SCHEMA_VERSION", "problems"]

SCHEMA_VERSION = 1
#: Ratios and differences of smaller numbers stay finite.
_LARGEST = 1e300

_NUMBER = {"type": ["number", "null"]}
_COUNT = {"type": ["integer", "null"]}
_TEXT = {"type": "string"}
_STATUSES = (
    *("ok", "out of memory", "gate failed", "missing", "unsupported", "skipped", "failed"),
)
_RATES = {
    "type": "object",
    "required": ["bandwidth_bytes_per_second", "matmul_flops"],
    "properties": {
        "bandwidth_bytes_per_second": {"type": "number"},
        "matmul_flops": {"type": "number"},
    },
}


_MAYBE_RATES = {**_RATES, "type": ["object", "null"]}


def _object(required: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": sorted(required), "properties": {**required, **more}}


_ROW = _object(
    {
        "what": {"enum": ["ops", "prefill", "decode", "train"]},
        "operation": _TEXT,
        "arm": _TEXT,
        "seq_len": {"type": "integer"},
        "batch": {"type": "integer"},
        "dtype": {"enum": ["fp32", "bf16", "fp16"]},
        "median_ms": _NUMBER,
        "spread_ms": _NUMBER,
        "tokens_per_second": _NUMBER,
        "peak_bytes": _COUNT,
        "cache_bytes": _COUNT,
        "status": {"enum": list(_STATUSES)},
    },
    note=_TEXT,
    samples={"type": "integer"},
    speed_ratio=_NUMBER,
    speed_ratio_spread=_NUMBER,
    speed_ratio_against={"type": ["string", "null"]},
    held_bytes=_COUNT,
    rss_bytes=_COUNT,
    needed_bytes=_COUNT,
    kv_bytes=_COUNT,
    state_bytes=_COUNT,
    cache_bytes_counted=_COUNT,
    flops=_NUMBER,
    bytes=_NUMBER,
    bound={"enum": ["memory", "compute", None]},
    roofline_share=_NUMBER,
    mfu=_NUMBER,
    cuda_graph={"type": ["boolean", "null"]},
)

_WHOLE = {"type": "integer", "minimum": 1}
_REQUEST = {
    "type": "object",
    "required": ["seq_lens"],
    "properties": {
        "seq_lens": {"type": "array", "items": _WHOLE, "minItems": 1},
        "what": {"type": "array", "items": {"enum": list(WHATS)}, "minItems": 1},
        "model": {"type": ["string", "null"]},
        "preset": {"type": ["string", "null"]},
        "against": {"type": ["array", "null"], "items": _TEXT},
        "batches": {"type": "array", "items": _WHOLE, "minItems": 1},
        "device": _TEXT,
        "dtype": {"enum": list(DTYPES)},
        "threads": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_THREADS},
        "heads": {"type": ["integer", "null"], "minimum": 1},
        "training": {"type": "array", "items": {"enum": list(TRAININGS)}},
        "seconds": {"type": "number", "minimum": 0},
    },
}

_MEASURED = dict.fromkeys(("what", "operation", "arm"), _TEXT)

_EXPONENT = _object(
    {
        **_MEASURED,
        "batch": {"type": "integer"},
        "dtype": _TEXT,
        "quantity": {"enum": ["time", "memory"]},
        "exponent": {"type": "number"},
        "last_exponent": {"type": "number"},
        "seq_lens": {"type": "array", "items": {"type": "integer"}},
    }
)

_GATE = _object(
    {
        **_MEASURED,
        "seq_len": {"type": "integer"},
        "error": _NUMBER,
        "tolerance": {"type": "number"},
        "passed": {"type": "boolean"},
    },
    detail=_TEXT,
    reference=_TEXT,
)

_PART = _object(
    {
        "arm": _TEXT,
        "seq_len": {"type": "integer"},
        "batch": {"type": "integer"},
        "part": _TEXT,
        "forward_ms": {"type": "number"},
        "backward_ms": {"type": "number"},
        "share": {"type": "number"},
    },
    what={"enum": ["train", "decode"]},
    operations={"type": "integer"},
)

_SECONDS: dict[str, Any] = {"type": "number"}
_TOOK = {"checks": _SECONDS, "warm_up": _SECONDS, "timing": _SECONDS, "in_all": _SECONDS}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "bench.json",
    "description": "A result of `wuneng bench`. More keys than these may be present.",
    **_object(
        {
            "schema": {"const": SCHEMA_VERSION},
            "request": _REQUEST,
            "environment": {"type": "object"},
            "machine": _object(
                {"device": _TEXT, "threads": {"type": "integer"}, "rates": _RATES},
                rates_at_start=_MAYBE_RATES,
                rates_at_end=_MAYBE_RATES,
            ),
            "models": {"type": "object"},
            "peers": {"type": "object"},
            "gates": {"type": "array", "items": _GATE},
            "rows": {"type": "array", "items": _ROW},
            "exponents": {"type": "array", "items": _EXPONENT},
            "parts": {"type": "array", "items": _PART},
            "roofline": _RATES,
        },
        took=_object(_TOOK),
        sentences={"type": "array", "items": _TEXT},
    ),
}

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def problems(value: Any) -> list[str]:
    """What is wrong with a record, each with its place; empty when it is a valid bench.json."""
    return list(_check(value, SCHEMA, "bench.json"))


def _check(value: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
    if "const" in schema and value != schema["const"]:
        yield f"{place}: expected {schema['const']!r}, got {value!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: expected one of {schema['enum']}, got {value!r}"
    if "type" in schema and not _is_of(value, schema["type"]):
        yield f"{place}: expected {schema['type']}, got {type(value).__name__}"
        return
    yield from _out_of_bounds(value, schema, place)
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{place}: {name} is missing"
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from _check(value[name], inner, f"{place}.{name}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _check(item, schema["items"], f"{place}[{index}]")


def _out_of_bounds(value: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
    if isinstance(value, list) and len(value) < schema.get("minItems", 0):
        yield f"{place}: expected at least {schema['minItems']} entries, got {len(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not abs(value) < _LARGEST:  # NaN is not, either; neither is JSON
        yield f"{place}: expected a finite number, got another"
    elif value < schema.get("minimum", value):
        yield f"{place}: expected {schema['minimum']} or more, got {value}"
    elif value > schema.get("maximum", value):
        yield f"{place}: expected at most {schema['maximum']}, got {value}"


def _is_of(value: Any, names: str | list[str]) -> bool:
    for name in [names] if isinstance(names, str) else names:
        if isinstance(value, bool) and name != "boolean":
            continue
        if isinstance(value, _TYPES[name]):
            return True
    return False
