"""Every number of a report, computed again from the records by formulas written here."""

from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wuneng.report.curves import _thinned
from wuneng.report.section import number


def load(place: Path, name: str) -> Any:
    return json.loads((place / name).read_text(encoding="utf-8"))


def sections(place: Path) -> dict[str, dict[str, Any]]:
    [part] = load(place, "report.json")["parts"]
    return {section["key"]: section for section in part["sections"]}


def curve_points(place: Path, arm: str, figure: str) -> dict[int, np.ndarray]:
    """(tokens, value) ``[n, 2]`` by seed, read anew."""
    found = {}
    for file in (place / arm).glob("seed-*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        told = [
            row["loss"] if figure == "training loss" else row["validation"][figure] for row in rows
        ]
        values = [(row["tokens"], value) for row, value in zip(rows, told, strict=True)]
        found[int(file.parent.name.removeprefix("seed-"))] = np.array(values)
    return found


def test_every_section_is_there(reported: Path) -> None:
    assert set(sections(reported)) == {
        *("answer", "tokens-saved", "curves", "lengths", "differences", "ablations", "quality"),
        *(
            "costs",
            "pareto",
            "tasks",
            "levels",
            "controls",
            "heads",
            "speed",
            "settings",
            "environment",
        ),
    }


def test_learning_curves(reported: Path) -> None:
    rows = sections(reported)["curves"]["rows"]
    assert len(rows) == 2 * 3 * 40
    assert {row["figure"] for row in rows} == {"text/bits_per_byte", "training loss"}
    for row in rows:
        at = [
            dict(points)[row["tokens"]]
            for points in curve_points(reported, row["arm"], row["figure"]).values()
        ]
        assert row["seeds"] == len(at) == 3
        assert row["mean"] == pytest.approx(np.mean(at))
        assert (row["lowest"], row["highest"]) == (min(at), max(at))


def test_tokens_saved(reported: Path) -> None:
    rows = sections(reported)["tokens-saved"]["rows"]
    pairs = [(row["arm"], row["against"]) for row in rows]
    assert pairs == [("wuneng", "mha"), ("no-middle", "mha")]
    for row in rows:
        ours, theirs = (curve_points(reported, row[k], row["figure"]) for k in ("arm", "against"))
        ratios = []
        for seed, points in ours.items():
            goal = theirs[seed][-1]
            # The curve falls all the way: tokens as a function of the loss.
            ratios.append(np.interp(goal[1], points[::-1, 1], points[::-1, 0]) / goal[0])
        logs = np.log(ratios)
        interval = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
        assert row["saved"] == pytest.approx(1 - math.exp(logs.mean()))
        assert row["low"] == pytest.approx(1 - math.exp(interval[1]))
        assert row["high"] == pytest.approx(1 - math.exp(interval[0]))
        assert (row["seeds"], row["censored"]) == (3, 0)
        assert row["told"] == f"{100 * row['saved']:.1f} %"


def test_differences_and_their_correction(reported: Path) -> None:
    rows = sections(reported)["differences"]["rows"]
    paired = load(reported, "results.json")["paired"]
    assert len(rows) == len(paired) == 12
    for row in rows:
        [pair] = [
            one
            for one in paired
            if one["figure"] == row["figure"] and set(one["arms"]) == {row["arm"], row["against"]}
        ]
        sign = 1 if pair["arms"][0] == row["arm"] else -1
        assert row["difference"] == sign * pair["difference"]
        assert [row["low"], row["high"]] == sorted(sign * end for end in pair["interval"])
        assert (row["p"], row["seeds"], row["test"]) == (pair["p"], 3, "paired-t")
    first = rows[0]["figure"]
    secondary = [row for row in rows if row["p_holm"] is not None]
    assert {row["figure"] for row in secondary} == {row["figure"] for row in rows} - {first}
    ordered = sorted(secondary, key=lambda row: row["p"])
    expected = np.maximum.accumulate(
        [min(1.0, (len(ordered) - place) * row["p"]) for place, row in enumerate(ordered)]
    )
    assert [row["p_holm"] for row in ordered] == pytest.approx(expected)


def text_rows(place: Path, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of each seed's rows of text, ``[seeds, rows]``, read anew."""
    files = sorted((place / arm).glob("seed-*/rows.json"))
    rows = [json.loads(file.read_text())["rows"]["text"]["64"] for file in files]
    nats, sizes = (np.array([row[key] for row in rows], dtype=float) for key in ("nats", "bytes"))
    return nats, sizes


def test_seeds_and_rows_at_once(reported: Path) -> None:
    """Analysis of variance of a table of seeds and rows without repetition, by sums of squares."""
    section = sections(reported)["differences"]
    rows = [row for row in section["rows"] if row["crossed_low"] is not None]
    assert [row["figure"] for row in rows] == ["text/bits_per_byte"] * 3
    assert {row["figure"] for row in section["rows"] if row not in rows} == {
        f"recall/accuracy@{length}" for length in (64, 128, 256)
    }
    shares = []
    for row in rows:
        parts = []
        for arm in (row["arm"], row["against"]):
            nats, sizes = text_rows(reported, arm)
            bits = nats / math.log(2)
            # To first order, how far a row moves the arm's bits per byte.
            parts.append((bits - bits.sum() / sizes.sum() * sizes) / sizes.mean())
        table = parts[0] - parts[1]
        seeds, items = table.shape
        effect_of_seed = table.mean(axis=1, keepdims=True) - table.mean()
        effect_of_row = table.mean(axis=0, keepdims=True) - table.mean()
        rest = table - table.mean() - effect_of_seed - effect_of_row
        squares = [
            items * (effect_of_seed**2).sum() / (seeds - 1),
            seeds * (effect_of_row**2).sum() / (items - 1),
            (rest**2).sum() / ((seeds - 1) * (items - 1)),
        ]
        assert squares[1] > squares[2], "rows differ"
        total = squares[0] + squares[1] - squares[2]
        freedoms = (seeds - 1, items - 1, (seeds - 1) * (items - 1))
        freedom = total**2 / sum(s**2 / f for s, f in zip(squares, freedoms, strict=True))
        half = stats.t.ppf(0.975, freedom) * math.sqrt(total / table.size)
        assert row["rows"] == items == 30
        assert row["share_of_seeds"] == pytest.approx(squares[0] / total)
        shares.append(row["share_of_seeds"])
        assert (row["crossed_low"] + row["crossed_high"]) / 2 == pytest.approx(row["difference"])
        # Three standard errors of a spread of 2,000 resamples.
        wide = (row["crossed_high"] - row["crossed_low"]) / 2
        assert wide == pytest.approx(half, rel=3 / math.sqrt(2 * 2000))
    assert min(shares) < 0.1, "of one pair the rows count"
    assert max(shares) > 0.3, "of another the seeds as well"
    assert any(line.startswith("Crossed: ") for line in section["text"])


def test_the_answer_and_the_ablation(reported: Path) -> None:
    found = sections(reported)
    [row] = found["answer"]["rows"]
    record = load(reported, "results.json")
    arms = record["arms"]
    assert row["value"] == arms["wuneng"]["quality"][row["figure"]]
    assert row["other"] == arms["mha"]["quality"][row["figure"]]
    [pair] = [
        one
        for one in record["paired"]
        if one["figure"] == row["figure"] and one["arms"] == ["wuneng", "mha"]
    ]
    assert [row["difference"], row["low"], row["high"]] == [pair["difference"], *pair["interval"]]
    saved = found["tokens-saved"]["rows"][0]
    assert row["tokens_saved"] == saved["saved"]
    sentence, summary = found["answer"]["text"]
    low, high = pair["interval"]
    told = f"difference {pair['difference']:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}"
    assert told in sentence
    assert f"{100 * saved['saved']:.1f} % fewer tokens" in sentence
    assert sentence.endswith("better, over 3 seeds.")
    assert summary == record["summary"]
    [ablation] = found["ablations"]["rows"]
    assert (ablation["arm"], ablation["against"]) == ("no-middle", "wuneng")


def test_quality_costs_and_lengths(reported: Path) -> None:
    found, arms = sections(reported), load(reported, "results.json")["arms"]
    for row in found["quality"]["rows"]:
        arm = arms[row["arm"]]
        assert row["value"] == arm["quality"][row["figure"]]
        assert row["standard_error"] == arm["standard_error"][row["figure"]]
        assert row["spread_over_seeds"] == arm["quality_std"][row["figure"]]
    assert len(found["quality"]["rows"]) == 3 * 4
    for row in found["costs"]["rows"]:
        assert {key: arms[row["arm"]][key] for key in row if key != "arm"} == {
            key: value for key, value in row.items() if key != "arm"
        }
        assert {"parameters", "training_flops", "seconds", "tokens_per_second"} <= set(row)
        assert {"cache_bytes", "state_bytes"} <= set(row)
    assert any("in float32" in line for line in found["costs"]["text"])
    for row in found["lengths"]["rows"]:
        name = f"{row['task']}/accuracy@{row['length']}"
        assert row["accuracy"] == arms[row["arm"]]["quality"][name]
    assert len(found["lengths"]["rows"]) == 3 * 3


def test_pareto(reported: Path) -> None:
    arms = load(reported, "results.json")["arms"]
    peaks = {
        row["arm"]: row["peak_bytes"]
        for row in load(reported, "bench.json")["rows"]
        if row["seq_len"] == 128
    }
    rows = sections(reported)["pareto"]["rows"]
    assert {row["cost"] for row in rows} == {
        *("parameters", "training_flops", "seconds", "tokens_per_second", "peak_bytes"),
        "state_bytes",  # and not the cache's, which are alike
    }
    for row in rows:
        assert row["value"] == arms[row["arm"]]["quality"][row["figure"]]
        own = [other for other in rows if other["cost"] == row["cost"]]
        amount = peaks if row["cost"] == "peak_bytes" else {a: arms[a][row["cost"]] for a in arms}
        assert row["amount"] == amount[row["arm"]]
        sign = -1 if row["cost"] == "tokens_per_second" else 1
        better = [
            other
            for other in own
            if sign * other["amount"] <= sign * row["amount"]
            and (other["value"] <= row["value"]) == (row["figure"] == "text/bits_per_byte")
            and (other["amount"], other["value"]) != (row["amount"], row["value"])
        ]
        assert row["best"] is not bool(better)


def test_tasks_controls_heads_and_speed(reported: Path) -> None:
    found = sections(reported)
    tasks = load(reported, "eval.json")["tasks"]
    for row in found["tasks"]["rows"]:
        metric = tasks[row["task"]]["metrics"][row["metric"]]
        for key in ("model", "baseline", "difference", "p", "p_holm", "test"):
            assert row[key] == metric[key]
        assert [row["low"], row["high"]] == metric["ci95"]
        assert (row["n"], row["chance"]) == tuple(tasks[row["task"]][k] for k in ("n", "chance"))
    metric = load(reported, "controls.json")["tasks"]["parity"]["metrics"]["accuracy@64"]
    for row in found["controls"]["rows"]:
        control = metric["controls"][row["control"]]
        assert [row["value"], row["difference"]] == [control["value"], control["difference"]]
        assert [row["low"], row["high"]] == (control["ci95"] or [None, None])
    for row in found["heads"]["rows"]:
        cell = metric["heads"][row["part"]][row["layer"]][row["head"]]
        assert row["difference"] == cell["difference"]
    assert len(found["heads"]["rows"]) == 2
    assert "parity: the gain is the state's." in found["controls"]["text"]
    measured = load(reported, "bench.json")["rows"]
    for row, own in zip(found["speed"]["rows"], measured, strict=True):
        assert {key: row[key] for key in own} == own


def test_levels_and_memory_span(reported: Path) -> None:
    record = load(reported, "eval.json")["tasks"]["chain"]["by_level"]
    levels = sections(reported)["levels"]
    assert [row["level"] for row in levels["rows"]] == [1, 2]
    for row, own in zip(levels["rows"], record["levels"], strict=True):
        metric = own["metrics"][row["metric"]]
        assert row["level_of"] == record["name"]
        assert (row["level"], row["n"], row["chance"]) == (own["value"], own["n"], own["chance"])
        assert [row[key] for key in ("model", "baseline", "difference")] == [
            metric[key] for key in ("model", "baseline", "difference")
        ]
        assert [row["low"], row["high"]] == metric["ci95"]
    page = (reported / "report.html").read_text()
    assert "acc of chain against hops: model 0.90 at 1 and 0.50 at 2; baseline 0.80 at 1" in page
    span = "reset 0.600 at 4 and 0.900 at 16; as it is 0.980 at 4"
    assert f"with the state reset every K tokens, or frozen after K: {span}" in page


def test_settings_and_environment(reported: Path) -> None:
    found = sections(reported)
    settings = {row["setting"]: row for row in found["settings"]["rows"]}
    assert settings["model.num_state_heads"]["mha"] == "0"
    assert settings["model.cross_head"]["no-middle"] == "none"
    assert "model.hidden_size" not in settings, "what all arms share is no difference"
    environment = {row["what"]: row["value"] for row in found["environment"]["rows"]}
    assert environment["packages.torch"] == "2.13.0"
    command = "wuneng train 'my recipe.yaml' --set training.steps=40"
    assert environment["command_line"] == found["curves"]["command"] == command
    assert found["tasks"]["command"] == found["levels"]["command"] == "wuneng eval runs/made-up"
    assert found["speed"]["command"] == "wuneng bench --out runs/made-up"
    for of_controls in ("controls", "heads"):
        assert found[of_controls]["command"] == "wuneng eval runs/made-up --controls all"


class Tables(HTMLParser):
    """The cells of every table, row by row, by the id of the heading before it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.key, self.inside = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "h2":
            self.key = str(names["id"]).removeprefix("r0-")
        elif tag == "tr":
            self.found.setdefault(self.key, []).append([])
        elif tag in ("td", "th"):
            self.inside = True
            self.found[self.key][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[self.key][-1][-1] += data


def test_page_and_csv_have_the_numbers_of_the_json(reported: Path) -> None:
    tables = Tables()
    tables.feed((reported / "report.html").read_text(encoding="utf-8"))
    for key, section in sections(reported).items():
        rows = section["rows"]
        with (reported / "report-data" / f"{key}.csv").open(encoding="utf-8", newline="") as file:
            beside = list(csv.DictReader(file))
        told = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
        assert beside == told
        if key == "answer":
            continue
        keys = [k for k in rows[0] if any(row[k] is not None for row in rows)]
        shown = [[k.replace("_", " ") for k in keys]]
        shown += [[number(row[k]) for k in keys] for row in rows]
        assert tables.found[key] == shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, "0.1235"), (1234567, "1,234,567"), (43210.4, "43,210"), (1.7e12, "1.700e+12"),
        (-0.00001234, "-1.234e-05"), (None, "–"), (True, "yes"), (math.nan, "nan"),
        ("a\x1b", "a\\x1b"),
    ],
)  # fmt: skip
def test_numbers_are_spelled(value: Any, expected: str) -> None:
    assert number(value) == expected


def test_a_long_curve_has_no_more_points_than_a_picture_shows() -> None:
    for count in (0, 1, 200, 201, 399, 400, 12_345):
        rows = [{"tokens": place} for place in range(count)]
        thinned = _thinned(rows)
        assert len(thinned) <= 200
        assert len(thinned) >= min(count, 100)
        assert thinned[-1:] == rows[-1:]
        apart = np.diff([row["tokens"] for row in thinned])
        assert len(set(apart.tolist())) <= 1
