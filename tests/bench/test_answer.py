"""The answer of a benchmark: sentences and one table, also of records that hold next to nothing."""

from __future__ import annotations

from typing import Any

import pytest

from wuneng.bench.answer import answer_table, report, sentences
from wuneng.bench.compare import PROCESS_NOISE, ratio_noise
from wuneng.bench.pictures import _figures
from wuneng.bench.pictures.roofline import roofline
from wuneng.bench.record import Row, nothing_measured, rows_of
from wuneng.pictures import styles_of
from wuneng.tables import Table


def row(
    arm: str, length: int, ratio: float | None = None, *, spread: float = 0.0, **changes: Any
) -> dict[str, Any]:
    made = Row("train", "step", arm, length, 1, "fp32", median_ms=10.0, spread_ms=0.1, samples=9)
    made.speed_ratio, made.speed_ratio_against = ratio, "mha" if ratio else None
    made.speed_ratio_spread = spread if ratio else None
    return {**made.to_json(), **changes}


def lost(arm: str, length: int, status: str = "out of memory", **changes: Any) -> dict[str, Any]:
    gone = {"status": status, "median_ms": None, "note": "9 GiB needed"}
    return row(arm, length, **{**gone, **changes})


def record(*rows: dict[str, Any], arms: tuple[str, ...] = ("wuneng", "mha")) -> dict[str, Any]:
    return {"rows": list(rows), "models": dict.fromkeys(arms), "parts": []}


def test_noise_of_a_ratio() -> None:
    """Three and a half standard errors of the median, widened at nine samples by a third."""
    made = rows_of(record(row("wuneng", 16, 2.0, spread=0.3)))[0]
    assert ratio_noise(made) == pytest.approx(3.2 * (4 / 3) * 0.3 / 3 + PROCESS_NOISE * 2.0)
    assert ratio_noise(Row("train", "step", "wuneng", 16, 1, "fp32")) == 0.0


def test_faster_slower_and_level_each_at_its_lengths() -> None:
    rows = [row("mha", n, 1.0) for n in (1024, 2048, 4096, 8192)]
    ratios = {1024: 0.5, 2048: 0.8, 4096: 1.02, 8192: 12.5}
    rows += [row("wuneng", n, ratio) for n, ratio in ratios.items()]
    assert list(sentences(record(*rows))) == [
        "train: wuneng is slower than mha at 1k and 2k, level with it within noise at 4k, faster "
        "than it at 8k: 0.50 ± 0.01 times its speed at 1k tokens, 12.5 ± 0.4 at 8k."
    ]


def test_one_length() -> None:
    told = list(sentences(record(row("wuneng", 1024, 2.0), row("mha", 1024, 1.0))))
    assert told == [
        "train: wuneng is faster than mha at 1k: 2.00 ± 0.06 times its speed at 1k tokens."
    ]


def test_where_memory_ended() -> None:
    rows = [row("wuneng", 1024, 2.0), row("mha", 1024, 1.0), row("wuneng", 2048), lost("mha", 2048)]
    rows += [lost("wuneng", 4096), lost("mha", 4096)]
    assert list(sentences(record(*rows))) == [
        "train: wuneng is faster than mha at 1k: 2.00 ± 0.06 times its speed at 1k tokens; "
        "at 2k: mha out of memory; at 4k: wuneng out of memory."
    ]
    assert "out of memory" in [row[-1] for row in answer_table(record(*rows)).rows]


def test_nothing_stands_beside() -> None:
    alone = record(row("wuneng", 1024), row("rwkv7", 1024), arms=("wuneng", "rwkv7"))
    told = ["There is no ratio to mha: it is not among the arms (--against)."]
    assert list(sentences(alone)) == told
    table = answer_table(alone)
    assert table.title == "time of a call"
    assert [cells[-1] for cells in table.rows] == ["10 ms", "10 ms"]


def test_a_recipe_whose_first_arm_is_mha() -> None:
    rows = [row("mha", 16, 1.0), row("hybrid", 16, 0.5)]
    assert next(sentences(record(*rows, arms=("mha", "hybrid")))).startswith("train: hybrid is slo")


def test_nothing_measured_is_said_with_its_reasons() -> None:
    empty = record(lost("wuneng", 2048), lost("mha", 1024), lost("mha", 2048, "missing"))
    said = nothing_measured(empty)
    assert said is not None
    assert said.startswith("nothing was measured: 2 out of memory, 1 missing. The smallest, train")
    assert "mha at 1024 tokens, batch 1: 9 GiB needed" in said
    missing = nothing_measured(record(lost("wuneng", 16, "missing", note="no CUDA device")))
    assert missing == "nothing was measured: 1 missing. wuneng: no CUDA device."
    assert nothing_measured(record()) is not None
    assert nothing_measured(record(lost("mha", 16), row("wuneng", 16))) is None
    assert nothing_measured({**record(), "parts": [{}]}) is None
    table = answer_table(record(*[lost("wuneng", 16, "missing", note="no CUDA device")]))
    assert (table.rows, table.caption) == ([], "wuneng missing: no CUDA device")


def test_parts_alone(full_record: Any) -> None:
    told = list(sentences({**full_record, "rows": []}))
    assert [text.split(" tokens: ")[0] for text in told] == [
        f"{arm}, {step} at 32"
        for step in ("a training step", "a decoded token")
        for arm in ("wuneng", "mha", "rwkv7")
    ]
    assert "attention " in told[0]


def test_a_whole_record_in_few_lines(full_record: Any) -> None:
    tables = [piece for piece in report(full_record) if isinstance(piece, Table)]
    assert len(tables) == 1
    told = {cells[0]: cells for cells in tables[0].rows if cells[0]}
    operations = ["ops, forward", "ops, forward + backward", "ops, step"]
    assert list(told) == ["train", "prefill", "decode", *operations]
    for name, cells in told.items():
        assert cells[1] == ("sdpa" if name.startswith("ops") else "mha")
        assert cells[2].endswith(" ms")
    assert len(tables[0].rows) == 3 * 3 + 3 * 2
    verbose = list(report({**full_record, "peers": {"fla": "not installed"}}, verbose=True))
    assert "fla: not installed" in verbose
    assert sum(isinstance(piece, Table) for piece in verbose) > 5


def test_no_two_series_of_a_panel_share_a_colour(full_record: Any) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = roofline(rows_of(full_record), full_record)
    for axis in figure.axes:
        handles = axis.get_legend().legend_handles
        colours = [line.get_color() for line in handles if line.get_linestyle() != "None"]
        assert len(set(colours)) == len(colours) >= 3
    pyplot.close(figure)
    known = ["sdpa", "triton", "native", "chunked", "reference", "mamba2", "eager", "fla-chunk"]
    many = [*known, *(f"arm-{n}" for n in range(20)), "wuneng", "mha"]
    styles = styles_of(many)
    assert len({style["color"] for style in styles.values()}) == len(many)
    assert styles["wuneng"]["color"] != styles["chunked"]["color"]


def test_no_legend_lies_over_its_panel(full_record: Any) -> None:
    """They lay over the lines of memory.png and time.png; nor over the names of the axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = _figures(rows_of(full_record), full_record)
    assert {"ratio", "time", "memory", "decode", "roofline"} == set(figures)
    for name, figure in figures.items():
        figure.canvas.draw()
        for axis in figure.axes:
            if not axis.axison:
                continue
            legend = axis.get_legend().get_window_extent()
            assert legend.y1 <= axis.get_window_extent().y0, f"{name}: it covers points"
            assert legend.y1 <= axis.xaxis.label.get_window_extent().y0 + 1, (
                f"{name}: it covers words"
            )
            assert legend.y0 >= 0
            below = [other.title.get_window_extent() for other in figure.axes if other is not axis]
            assert not any(legend.overlaps(title) for title in below), f"{name}: on a title"
        pyplot.close(figure)


def test_every_timed_arm_is_told() -> None:
    rows = [row(arm, n, ratio) for arm, ratio in (("wuneng", 0.5), ("mha", 1.0), ("rwkv7", 2.0))
            for n in (1024, 2048)]  # fmt: skip
    told = list(sentences(record(*rows, arms=("wuneng", "mha", "rwkv7"))))
    assert [text.partition(" than mha")[0] for text in told] == [
        "train: wuneng is slower",
        "train: rwkv7 is faster",
    ]


def test_where_the_time_went_is_told(full_record: Any) -> None:
    """``--seconds 10`` took 150 s, and nothing said why."""
    took = {"checks": 80.0, "warm_up": 40.0, "timing": 12.0, "in_all": 150.0}
    assert list(report({**full_record, "took": took}))[-1] == (
        "took 150 s: checks 80 s, warm-up 40 s, timing 12 s, the machine's rates and the rest 18 s"
    )


def test_headings_lie_within_their_figures() -> None:
    """One panel is narrow, and names of models are long."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row("mha", n, 1.0) for n in (16, 32)] + [row("wuneng", n, 0.9) for n in (16, 32)]
    rows = [{**made, "flops": 1e9, "bytes": 1e6, "peak_bytes": 2**20} for made in rows]
    told = record(*rows) | {
        "model": "a-model-whose-name-is-as-long-as-WWWW-many-WWWW-in-the-hub-$are$",
        "machine": {"accelerator": "NVIDIA H100 80GB HBM3", "threads": 1, "dtype": "bfloat16"},
        "roofline": {"bandwidth_bytes_per_second": 3e12, "matmul_flops": 8e14},
        "exponents": [],
    }
    with matplotlib.rc_context({"text.parse_math": False}):
        for name, figure in _figures(rows_of(told), told).items():
            if figure is None:
                continue
            figure.canvas.draw()
            box = figure._suptitle.get_window_extent()
            assert box.x0 >= 0, name
            assert box.x1 <= figure.bbox.x1, name
            pyplot.close(figure)
