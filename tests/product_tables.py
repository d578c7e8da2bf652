"""Every table that the product prints, with wide numbers and long names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from wuneng.tables import Table

LONG_ARM = "an-arm-with-a-name-as-long-as-a-sentence/seed-3"
SEVEN_B = 7_234_567_890


def results(arms: int = 3) -> dict[str, Any]:
    """results.json of an upgrade: source, new heads, LoRA, and more arms of new heads."""
    entries: dict[str, Any] = {}
    for n in range(arms):
        name = ("source", "wuneng", "lora", LONG_ARM)[n] if n < 4 else f"arm-number-{n}"
        quality = {"text/bits_per_byte": 1.125678 + n / 7, "text/perplexity": 12345.678 + n}
        quality |= {f"recall/accuracy@{64 << k}": 0.1234 + k / 9 + n / 99 for k in range(4)}
        entries[name] = {
            "kind": "attention" if n in (0, 2) else "hybrid",
            "token_shift": n not in (0, 2),
            "trains": ("none", "new", "lora")[min(n, 2)] if n < 3 else "new",
            "init_from": "model",
            "parameters": SEVEN_B + n,
            "trainable_parameters": 123_456_789 + n,
            "added_percent": 34.5 + n,
            "training_flops": 1.23e21 * (n + 1),
            "tokens": 123_456_789_012 + n,
            "seconds": 1_234_567.8 + n,
            "tokens_per_second": 123_456.0 + n,
            "quality": quality,
            "standard_error": dict.fromkeys(quality, 0.012 + n / 1000),
            "examples": dict.fromkeys(quality, 512),
            "seeds": [0],
        }
    pairs = [
        {"figure": "text/bits_per_byte", "arms": [name, "source"], "difference": -0.1 - n / 77,
         "standard_error": 0.0123}
        for n, name in enumerate(entries)
    ]  # fmt: skip
    return {"name": "upgrade", "arms": entries, "reference": "source", "paired": pairs}


def results_tables() -> Iterator[Table]:
    from wuneng.train.summary import results_table

    for arms in (3, 10):
        yield results_table(results(arms))


def eval_tables() -> Iterator[Table]:
    from wuneng.evaluate.comparison import compare
    from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes
    from wuneng.evaluate.results import report_table
    from wuneng.evaluate.session import EvaluationReport, EvaluationRequest

    draw = np.random.default_rng(0)

    def outcomes(name: str, share: float) -> TaskOutcomes:
        right = (draw.random(10_042) < share).astype(float)
        perplexity = MetricOutcomes(
            "ratio", -20 * draw.random(10_042), np.ones(10_042), "perplexity", False
        )
        metrics = {"acc": MetricOutcomes("ratio", right), "word_perplexity": perplexity}
        return TaskOutcomes(name, [str(n) for n in range(10_042)], metrics, chance=0.25)

    names = ("hellaswag", "mmlu_high_school_european_history")
    sides = [[outcomes(name, share) for name in names] for share in (0.31, 0.29)]
    models = {
        key: {"label": label, "path": "m", "parameters": SEVEN_B, "state": "keep"}
        for key, label in (("model", f"upgrade/{LONG_ARM}"), ("baseline", "upgrade/source"))
    }
    for baseline in (sides[1], None):
        yield report_table(
            EvaluationReport(
                request=EvaluationRequest(model="m", baseline="b", tasks=list(names)),  # type: ignore[arg-type]
                models={**models, "baseline": models["baseline"] if baseline else None},
                tasks=compare(sides[0], baseline),
                sources={},
                notes=[],
            )
        )


def control_tables() -> Iterator[Table]:
    from wuneng.controls.names import Control, Head
    from wuneng.evaluate.comparison import compare
    from wuneng.evaluate.controls.battery import ControlsReport, UnderControl
    from wuneng.evaluate.controls.report import controls_tables
    from wuneng.evaluate.job import EvaluationRequest
    from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes

    draw = np.random.default_rng(0)

    def outcomes(name: str) -> TaskOutcomes:
        bits = MetricOutcomes("ratio", -900 * draw.random(40), 90 + draw.random(40), "bits", False)
        return TaskOutcomes(name, [str(n) for n in range(40)], {"bits_per_byte": bits})

    names = ["validation", *(f"multi-hop-chains-with-a-long-name@{64 << k}" for k in range(4))]
    right = [outcomes(name) for name in names]
    controls = [Control("permute"), Control("reset", 16384)]
    controls += [Control("head", head=Head("attention", 127, n)) for n in (0, 127)]
    yield from controls_tables(
        ControlsReport(
            EvaluationRequest("m", names),  # type: ignore[arg-type]
            {"label": f"upgrade/{LONG_ARM}", "parameters": SEVEN_B},
            [UnderControl(c, compare(right, [outcomes(n) for n in names])) for c in controls],
            {},
            [],
        )
    )


def inspect_tables() -> Iterator[Table]:
    from wuneng.inspect.report import tables

    state = {
        "rate": [1.234], "rate_largest": [1.999], "norm": [[123456.7]], "rank": [[127.9]],
        "flips": [131072],
        "half_life": {"shortest": [1.1], "median": [None], "longest": [123_456_789.0]},
    }  # fmt: skip
    middle = {"gate": [0.123], "share": [0.999]}
    attention = {"entropy": [12.3456], "uniform": 13.5}
    layer = {"layer": 127, "state": state, "middle": middle, "attention": attention}
    model, text = {"label": f"upgrade/{LONG_ARM}"}, {"tokens": 131072}
    yield from tables({"model": model, "text": text, "layers": [layer]})


def bench_tables() -> Iterator[Table]:
    from wuneng.bench.answer import answer_table
    from wuneng.bench.compare import Change, Comparison
    from wuneng.bench.record import rows_of
    from wuneng.bench.tables import comparison_table, record_tables

    rows = [
        {"what": what, "operation": what, "arm": arm, "batch": 64, "seq_len": length,
         "status": "ok", "note": "", "device": "cuda", "dtype": "bf16", "median_ms": 12_345.6 + n,
         "spread_ms": 99.9, "tokens_per_second": 1_234_567.0 + n, "peak_bytes": 81.23 * 2**30,
         "cache_bytes": 2**35 + 2**29, "kv_bytes": 2**35 + n, "state_bytes": 2**29 + n,
         "speed_ratio": 11.23 + n, "speed_ratio_spread": 0.5, "speed_ratio_against": "mha",
         "roofline_share": 0.42, "bound": "bandwidth"}
        for what in ("prefill", "decode", "train")
        for length in (1000, 131_072)
        for n, arm in enumerate(("wuneng", "mha", LONG_ARM))
    ]  # fmt: skip
    rows += [
        {**rows[0], "arm": "rwkv7", "status": "out of memory", "median_ms": None,
         "needed_bytes": 123.4 * 2**30},
        {**rows[0], "arm": "llama", "status": "unsupported", "median_ms": None,
         "note": "transformers 9.9.9 has no such model, and this sentence goes on for long"},
    ]  # fmt: skip
    exponents = [
        {"what": "decode", "operation": "decode", "arm": LONG_ARM, "batch": 64,
         "quantity": quantity, "exponent": 1.98, "last_exponent": -0.97}
        for quantity in ("time", "memory")
    ]  # fmt: skip
    parts = [
        {"what": "train", "seq_len": 131_072, "arm": LONG_ARM, "part": "middle heads (gated)",
         "forward_ms": 12_345.6 + n, "backward_ms": 23_456.7 + n, "share": 0.42,
         "operations": 123_456 + n}
        for n in range(2)
    ]  # fmt: skip
    record: dict[str, Any] = {"rows": rows, "exponents": exponents, "parts": parts}
    record["models"] = dict.fromkeys(("wuneng", "mha", LONG_ARM))
    yield from record_tables(record)
    yield answer_table(record)
    kept = rows_of({"rows": rows})
    changes = [Change(kept[2], "time", 12_345.6, 23_456.7, 0.05)]
    changes.append(Change(kept[2], "memory", 81.2 * 2**30, 91.2 * 2**30, 0.05))
    yield comparison_table(Comparison(changes, 0.0, [], [], []))


def convert_tables() -> Iterator[Table]:
    from wuneng.convert import Check
    from wuneng_cli.conversion_text import checks_table

    names = ("full forward", "left padding", "cache, token by token", "generate, 32 tokens, greedy")
    yield checks_table(
        [
            Check(name, dtype, 1_048_576, 1.23e-12, 0.999, 4.56e-10, tolerance)
            for name in names
            for dtype, tolerance in (("float32", 0.00018), ("bfloat16", None))
        ]
    )


def dry_run_tables() -> Iterator[Table]:
    from wuneng_cli.dry_run import plan_table

    parts = ("embedding", "attention", "state heads", "middle heads", "feed-forward", "norms")
    held = ("weights", "gradients", "optimizer", "activations", "logits", "gathered", "total")
    device = {
        "processes": 1024,
        "degrees": "HSDP, replicate 128 x shard 4 x context 2",
        "memory": dict.fromkeys(held, 123.4 * 2**30),
    }
    for arms, of_each in ((3, None), (10, None), (3, device)):
        entries = {
            (LONG_ARM if n == 1 else f"arm-number-{n}"): {
                "per_device": of_each,
                "parts": {part: 1_234_567_890 + n + 10 * k for k, part in enumerate(parts)},
                "parameters": SEVEN_B + n,
                "trainable_parameters": 123_456_789 + n,
                "added_percent": 34.5 + n,
                "intermediate_size": 28_672 + n,
                "match": "parameters",
                "training_flops": 1.23e21 * (n + 1),
                "memory": {"total": 123.4 * 2**30 + n * 2**30},
                "stages": [{"stage": "distill", "total": 23.4 * 2**30}] if n else [],
                "disk_bytes": 234.5 * 2**30 + n * 2**30,
                "seconds": 1_234_567.8 * (n + 1),
            }
            for n in range(arms)
        }
        yield plan_table({"name": "a recipe", "arms": entries})


def study_tables() -> Iterator[Table]:
    from wuneng.study.conclusion import study_table
    from wuneng.study.sweep_table import sweep_table

    arm = {
        "tuned": {"training.learning_rate": 0.0123, "training.optimizer": "muon"},
        "parameters": SEVEN_B, "training_flops": 1.23e21, "cache_bytes": 2**35 + 7,
        "state_bytes": 2**29, "seconds": 1_234_567.8, "mean": 1.125678, "standard_error": 0.0123,
    }  # fmt: skip
    interval = {"difference": -0.113, "interval": [-0.1371, -0.0889]}
    arms: dict[str, Any] = {"wuneng": arm, LONG_ARM: {**arm, "mean": 1.2387}, "mha-shift": None}
    rungs = [
        {"rung": f"{size}-{tokens}-tokens-a-parameter", "arms": arms,
         "differences": [{"arms": ["wuneng", LONG_ARM], **interval}]}
        for size in ("300K", "1M") for tokens in (4, 8)
    ]  # fmt: skip
    plan = {"sha256": "0123456789abcdef" * 4}
    yield study_table(
        {"name": "study", "primary": "text/bits_per_byte", "plan": plan, "rungs": rungs}
    )
    entry = {"parameters": SEVEN_B, "tokens_per_second": 1_234_567.0, "seeds": [0],
             "quality": {"text/bits_per_byte": 1.125678},
             "standard_error": {"text/bits_per_byte": 0.0123}}  # fmt: skip
    rates = (0.00025, 0.0005)
    points = [
        {"point": str(rate), "values": {"training.learning_rate": rate, "model.decay_rank": 128},
         "arms": {"wuneng": entry, LONG_ARM: None if n else entry}}
        for n, rate in enumerate(rates)
    ]  # fmt: skip
    sweep = {"training.learning_rate": list(rates), "model.decay_rank": [128]}
    best = {"wuneng": {"point": str(rates[0])}}
    figures = ["text/bits_per_byte"]
    yield sweep_table(
        {"name": "sweep", "sweep": sweep, "figures": figures, "points": points, "best": best}
    )


def study_plan_tables() -> Iterator[Table]:
    from wuneng_cli.study_dry_run import runs_table

    runs = [
        {"place": f"{size}-8-tokens-a-parameter", "stage": stage, "arm": arm, "runs": 1234,
         "parameters": size * 1_000_003, "tokens": size * 8_000_024, "training_flops": 1.23e21,
         "seconds_each": 12_345.6, "seconds": None if arm == "mha" else 1234 * 12_345.6}
        for size in (300, 1000, 3000) for stage in ("tune", "compare")
        for arm in ("wuneng", LONG_ARM, "mha")
    ]  # fmt: skip
    for every in (False, True):
        yield runs_table({"name": "a study", "runs": runs}, every=every)


def profile_tables() -> Iterator[Table]:
    from wuneng.train import profile_table

    def found(share: float) -> dict[str, Any]:
        parts = [{"part": name, "share": share} for name in ("state heads", "feed-forward")]
        name = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
        return {"steps": [100, 131], "parts": parts, "operators": [{"operator": name, **parts[0]}]}

    yield from profile_table.profile_tables({"wuneng": found(0.123), LONG_ARM: found(0.456)})


def field_tables() -> Iterator[Table]:
    from wuneng.recipe.fields import recipe_fields
    from wuneng_cli.recipe import field_table

    yield from map(field_table, recipe_fields())


TABLES: dict[str, Callable[[], Iterator[Table]]] = {
    "train": results_tables,
    "eval": eval_tables,
    "controls": control_tables,
    "inspect": inspect_tables,
    "bench": bench_tables,
    "convert": convert_tables,
    "dry run": dry_run_tables,
    "study": study_tables,
    "dry run of a study": study_plan_tables,
    "profile": profile_tables,
    "recipe": field_tables,
}
