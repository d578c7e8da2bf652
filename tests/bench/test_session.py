"""Whole benchmarks at tiny shapes, with planted times."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tests.bench.records import record_of, tiny_request
from wuneng.bench.architectures import PRESETS, choose, derive
from wuneng.bench.engine import Engine
from wuneng.bench.pictures import draw
from wuneng.bench.pictures.roofline import roofline
from wuneng.bench.record import csv_text, read_record, rows_of, write_record
from wuneng.bench.request import make_request
from wuneng.bench.schema import SCHEMA, problems
from wuneng.bench.stopping import STOPPED, was_stopped
from wuneng.built_in_arms import BUILT_IN_ARMS
from wuneng.errors import DataError, InputError, ModelError
from wuneng.model import WuNengConfig
from wuneng.model.counting import describe
from wuneng.ops import native
from wuneng.pictures import plain_numbers

#: The recorded models have heads of 16.
BACKENDS = (["native"] if native.library(16) else []) + ["chunked", "reference"]
FUSION = ["eager", "fused"] + (["native"] if native.library(16) else [])


def test_every_kind_of_case_is_measured(full_record: Any) -> None:
    rows = rows_of(full_record)
    assert {row.status for row in rows} == {"ok"}
    models = ["wuneng", "mha", "rwkv7"]
    for what in ("prefill", "decode", "train"):
        assert [r.arm for r in rows if r.what == what] == models * 2
    operators = {(row.operation, row.arm) for row in rows if row.what == "ops"}
    assert operators == {
        *((o, a) for o in ("forward", "forward+backward", "step") for a in (*BACKENDS, "sdpa")),
        *(("fusion", arm) for arm in FUSION),
    }
    assert {row.roofline_share is not None and row.peak_bytes for row in rows} != {None}


def test_counted_cache_is_the_measured_one(full_record: Any) -> None:
    caches = [row for row in rows_of(full_record) if row.what in ("prefill", "decode")]
    assert caches
    for row in caches:
        assert row.cache_bytes == row.cache_bytes_counted
    by_arm = {row.arm: row for row in caches}
    assert by_arm["mha"].state_bytes == 0
    assert by_arm["rwkv7"].kv_bytes == 0


def test_every_arm_passed_its_gate(full_record: Any) -> None:
    gates = full_record["gates"]
    assert all(gate["passed"] and gate["error"] <= gate["tolerance"] for gate in gates)
    timed = {(row.what, row.arm) for row in rows_of(full_record)}
    assert {(gate["what"], gate["arm"]) for gate in gates} == timed


def test_exponents_of_every_series(full_record: Any) -> None:
    time = [e for e in full_record["exponents"] if e["quantity"] == "time"]
    assert len(time) == 3 + len(FUSION) + 3 * len(BACKENDS) + 9
    for entry in time:  # the planted clock says 10 ms whatever the length, within its jitter
        assert entry["exponent"] == pytest.approx(0.0, abs=0.05)


def test_parts_of_a_step_add_up(full_record: Any) -> None:
    every = full_record["parts"]
    parts = [p for p in every if (p["what"], p["arm"], p["seq_len"]) == ("train", "wuneng", 32)]
    assert sum(part["share"] for part in parts) == pytest.approx(1.0)
    by_name = {part["part"]: part for part in parts}
    for name in ("attention", "state heads", "middle heads", "feed-forward"):
        assert by_name[name]["forward_ms"] > 0
        assert by_name[name]["backward_ms"] > 0
    assert by_name["optimiser"]["forward_ms"] > 0
    mha = {p["part"] for p in every if p["arm"] == "mha"}
    assert "state heads" not in mha
    decoded = {p["part"]: p for p in every if (p["what"], p["arm"]) == ("decode", "wuneng")}
    assert decoded["attention"]["operations"] > 10
    # In C a token's state heads are two calls and what they allocate; in torch dozens of operators.
    assert (decoded["state heads"]["operations"] > 10) == ("native" not in BACKENDS)
    assert decoded["state heads"]["backward_ms"] == 0


def test_the_record_fits_its_published_schema(full_record: Any, repository: Path) -> None:
    published = json.loads((repository / "docs" / "bench-schema.json").read_text())
    assert published == SCHEMA, "regenerate: python -m wuneng.bench schema"
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads(json.dumps(full_record)), published)
    assert problems(full_record) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema": 2}, "bench.json.schema: expected 1, got 2"),
        ({"rows": [{"what": "ops"}]}, "bench.json.rows[0]: arm is missing"),
        ({"rows": {}}, "bench.json.rows: expected array, got dict"),
        ({"exponents": [{"exponent": True}]}, "exponents[0].exponent: expected number, got bool"),
        ({"request": {}}, "bench.json.request: seq_lens is missing"),
        ({"request": {"what": 5}}, "bench.json.request.what: expected array, got int"),
        ({"request": {"what": []}}, "bench.json.request.what: expected at least 1 entries, got 0"),
        ({"request": {"model": {"a": 1}}}, "request.model: expected ['string', 'null'], got dict"),
        ({"request": {"threads": "x"}}, "request.threads: expected ['integer', 'null'], got str"),
        ({"request": {"threads": 2**40}}, "request.threads: expected at most 16384, got 1099511"),
        ({"request": {"seq_lens": [16, "32"]}}, "request.seq_lens[1]: expected integer, got str"),
        ({"request": {"batches": [0]}}, "request.batches[0]: expected 1 or more, got 0"),
        ({"request": {"dtype": ["fp32"]}}, "request.dtype: expected one of ['auto', 'fp32'"),
        ({"request": {"seconds": "x"}}, "request.seconds: expected number, got str"),
        ({"machine": {"rates_at_start": [1]}}, "machine.rates_at_start: expected ['object', "),
    ],
)
def test_the_check_names_the_place(
    decode_record: Any, change: dict[str, Any], expected: str
) -> None:
    wrong = {**decode_record, **change}
    assert any(expected in problem for problem in problems(wrong))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.parametrize("number", [math.nan, math.inf, 10**400])
def test_a_number_that_no_arithmetic_survives(decode_record: Any, number: float) -> None:
    rows = [{**row, "median_ms": number} for row in decode_record["rows"]]
    found = problems({**decode_record, "rows": rows})
    assert found[0] == "bench.json.rows[0].median_ms: expected a finite number, got another"


@pytest.mark.parametrize("span", [(3.4, 6.1), (8.7, 13.0), (40, 700), (0.03, 1000), (0.51, 0.58)])
def test_ticks_can_be_told_apart(span: tuple[float, float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.plot([1, 2], span)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    ticks = axes.yaxis.get_major_ticks()
    labels = [t.label1.get_text() for t in ticks if low <= t.get_loc() <= high]
    pyplot.close(figure)
    assert len(labels) >= 2
    assert len(set(labels)) == len(labels)


def test_files_and_pictures(full_record: Any, tmp_path: Path) -> None:
    write_record(tmp_path, full_record)
    assert read_record(tmp_path)["rows"] == json.loads(json.dumps(full_record["rows"]))
    lines = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert len(lines) == len(full_record["rows"])
    assert lines[0]["arm"] == full_record["rows"][0]["arm"]
    assert csv_text(rows_of(full_record)) == (tmp_path / "bench.csv").read_text()
    names = {path.name for path in draw(full_record, tmp_path)}
    assert names == {"ratio.png", "time.png", "memory.png", "decode.png", "roofline.png"}
    for name in names:
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert "<svg" in (tmp_path / name).with_suffix(".svg").read_text()


def test_the_roofline_tells_its_series_apart(full_record: Any) -> None:
    """A colour for each arm, a marker for each kind: every series was drawn alike."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = rows_of(full_record)
    figure = roofline(rows, full_record)
    drawn = [
        {(line.get_color(), line.get_marker()) for line in axis.lines if len(line.get_xdata()) == 2}
        for axis in figure.axes
    ]
    pyplot.close(figure)
    series = {(row.what == "ops", row.what, row.operation, row.arm) for row in rows}
    assert [len(found) for found in drawn] == [
        sum(one[0] == of_operators for one in series) for of_operators in (True, False)
    ]


def test_files_that_are_no_record_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"schema": 1}')
    with pytest.raises(DataError, match=r"old\.json is not a bench\.json of version 1: .*missing"):
        read_record(tmp_path / "old.json")


def test_other_arms_and_bf16() -> None:
    record = record_of(
        what="prefill,train", seq_len="16,32", against="llama,replace,mha-shift", dtype="bf16"
    )
    rows = rows_of(record)
    assert {row.status for row in rows} == {"ok"}, [row.note for row in rows]
    assert {row.arm for row in rows} == {"wuneng", "llama", "replace", "mha-shift"}
    assert {row.dtype for row in rows} == {"bf16"}
    sizes = {arm: model["parameters"] for arm, model in record["models"].items()}
    assert sizes["llama"] == pytest.approx(sizes["wuneng"], rel=0.01)


def test_a_recipes_own_arms(repository: Path) -> None:
    request = tiny_request(model=str(repository / "recipes" / "quickstart.yaml"), against="mha")
    comparison = choose(request)
    assert [a.arm for a in comparison.architectures] == ["wuneng", "mha"]
    assert comparison.name == "quickstart"
    assert comparison.architectures[0].config.state_a_max == 2.0
    assert {"learning_rate", "clip", "activation_checkpointing"} <= set(comparison.training)


@pytest.mark.parametrize("arm", [name for name in BUILT_IN_ARMS if name != "wuneng"])
def test_derived_arms_are_the_recipes(arm: str, repository: Path, tmp_path: Path) -> None:
    """The same configuration whether a recipe names the arm or the benchmark derives it."""
    text = (
        (repository / "recipes" / "quickstart.yaml")
        .read_text()
        .replace("num_attention_heads: 2", "num_attention_heads: 4")
    )
    path = tmp_path / "recipe.yaml"
    arms = "" if f"\n  {arm}:" in text else f"\n  {arm}:"
    path.write_text(text.replace("\ndata:", f"{arms}\ndata:"))
    comparison = choose(tiny_request(model=str(path), against=arm))
    first, stated = (a.config.to_dict() for a in comparison.architectures)
    derived = derive(WuNengConfig(**first), arm).to_dict()
    assert derived == stated


def test_presets_are_as_large_as_they_say() -> None:
    for name, millions in (("130m", 130), ("400m", 370), ("1.5b", 1370), ("7b", 7000)):
        model = choose(make_request(preset=name, against="none")).architectures[0]
        assert model.parameters / 1e6 == pytest.approx(millions, rel=0.02)
        assert describe(model.config)["added_percent"] < 5
    assert set(PRESETS) == {"130m", "400m", "1.5b", "7b"}


@pytest.mark.parametrize("fields", [{}, {"output_init": "zero", "state_branch_init": "zero"}])
def test_what_is_compared_hangs_on_every_part(fields: dict[str, Any], tmp_path: Path) -> None:
    """Outputs that start at zero would let any backend pass."""
    path = tmp_path / "recipe.yaml"
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1} | fields
    rest = "data: {kind: synthetic, tasks: [{task: recall}]}\ntraining: {steps: 1}\n"
    path.write_text(f"model: {json.dumps(model | {'num_state_heads': 1})}\n{rest}")
    built = choose(tiny_request(model=str(path), against="none")).architectures[0].build()
    assert all(p.any() for n, p in built.named_parameters() if n.endswith("_proj.weight"))


def test_a_model_directory(tmp_path: Path) -> None:
    from wuneng.model import WuNengForCausalLM

    config = WuNengConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=1)
    WuNengForCausalLM(config).save_pretrained(tmp_path / "model")
    comparison = choose(tiny_request(model=str(tmp_path / "model"), against="none"))
    model = comparison.architectures[0].build()
    assert model.config.hidden_size == 32
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "7B"}, InputError, "--preset: expected .* Did you mean '7b'"),
        ({"model": "no/such/model"}, ModelError, "does not exist"),
        ({"device": "cuda:9"}, InputError, "device"),
        ({"dtype": "fp16"}, InputError, "fp16 needs a GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    from wuneng.bench.session import run_benchmark

    if options.get("device") and torch.cuda.is_available():
        pytest.skip("there may be such a device")
    request = make_request(**{"seq_len": "16,32", "what": "decode", "device": "cpu", **options})
    with pytest.raises(error, match=message):
        run_benchmark(request)


def test_one_that_is_stopped_keeps_what_it_has_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGTERM in the second of two groups: the first stays, the rest says why it is empty."""
    runs: list[int] = []
    own = Engine.run

    def run(self: Engine, cases: Any, seconds: float) -> Any:
        runs.append(1)
        if len(runs) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return own(self, cases, seconds)

    monkeypatch.setattr(Engine, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    record = record_of(what="decode,prefill")
    assert signal.getsignal(signal.SIGTERM) is before
    assert was_stopped(record)
    assert not problems(record)
    statuses = [row["status"] for row in record["rows"]]
    assert {*statuses} == {"ok", "skipped"}
    assert all((row["median_ms"] is None) == (row["note"] == STOPPED) for row in record["rows"])
    runs[:] = [1]
    with pytest.raises(KeyboardInterrupt):  # nothing was measured yet: nothing is kept
        record_of(what="decode,prefill")
