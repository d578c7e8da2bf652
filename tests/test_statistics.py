"""Estimates, tests and corrections against closed forms and scipy."""

from __future__ import annotations

import ast
import math

import numpy as np
import pytest

from tests.test_import_direction import sources
from wuneng.statistics import (
    OverSeeds,
    estimate,
    holm,
    mcnemar_exact,
    over_seeds,
    paired_accuracy_difference,
    paired_bootstrap,
    paired_by_seed,
    paired_difference,
    t_quantile,
    t_two_sided,
)


def test_mean_and_standard_error_are_the_textbook_ones() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    found = estimate(values)
    assert found.value == pytest.approx(0.6)
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(5))


def test_one_item_has_no_standard_error() -> None:
    assert estimate(np.array([1.0])).stderr is None


def test_perplexity_and_bits_are_functions_of_the_weighted_mean() -> None:
    scores = np.array([-2.0, -4.0, -9.0])
    tokens = np.array([1.0, 2.0, 3.0])
    perplexity = estimate(scores, tokens, "perplexity")
    bits = estimate(scores, tokens, "bits")
    assert perplexity.value == pytest.approx(math.exp(15 / 6))
    assert bits.value == pytest.approx(15 / 6 / math.log(2))
    assert perplexity.stderr is not None
    assert bits.stderr is not None
    assert perplexity.stderr / perplexity.value == pytest.approx(bits.stderr * math.log(2))


def test_ratio_standard_error_agrees_with_resampling() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 50, 400).astype(float)
    scores = -tokens * generator.uniform(0.5, 1.5, 400)
    rows = generator.integers(0, 400, (4000, 400))
    resampled = -(scores[rows].sum(1) / tokens[rows].sum(1)) / math.log(2)
    assert estimate(scores, tokens, "bits").stderr == pytest.approx(resampled.std(), rel=0.06)


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 0), (5, 5), (3, 12), (30, 61), (900, 1020)]
)
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(second, first) == pytest.approx(expected, rel=1e-9)


def test_accuracy_difference_by_hand() -> None:
    model = np.array([1.0] * 6 + [0.0] * 2 + [1.0] * 10 + [0.0] * 2)
    baseline = np.array([0.0] * 6 + [1.0] * 2 + [1.0] * 10 + [0.0] * 2)
    found = paired_accuracy_difference(model, baseline)
    assert found.difference == pytest.approx(4 / 20)
    assert found.p == pytest.approx(2 * (1 + 8 + 28) / 256)
    share, other = 7 / 22, 3 / 22
    spread = 1.959963985 * math.sqrt((share + other - (share - other) ** 2) / 22)
    assert found.low == pytest.approx(share - other - spread)
    assert found.high == pytest.approx(share - other + spread)
    assert found.test == "mcnemar-exact"


def test_the_interval_covers_the_true_difference_about_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        shared = generator.random(60)
        model = (shared + 0.15 * generator.random(60) < 0.55).astype(float)
        baseline = (shared + 0.15 * generator.random(60) < 0.50).astype(float)
        found = paired_accuracy_difference(model, baseline)
        covered += found.low <= 0.05 <= found.high
    assert 0.92 <= covered / 600 <= 1.0


def test_identical_outcomes_are_no_difference_but_leave_an_interval() -> None:
    same = np.array([1.0, 0.0] * 10)
    found = paired_accuracy_difference(same, same)
    assert (found.difference, found.p) == (0.0, 1.0)
    assert found.low < 0 < found.high


def test_bootstrap_interval_agrees_with_the_normal_one() -> None:
    generator = np.random.default_rng(2)
    baseline = generator.normal(-3.0, 1.0, 500)
    model = baseline + generator.normal(0.1, 0.5, 500)
    found = paired_bootstrap(model, baseline, scale="bits", seed=3)
    gain = -(model - baseline) / math.log(2)
    error = gain.std(ddof=1) / math.sqrt(500)
    assert found.difference == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.15 * error)
    assert found.p < 0.01


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(4).normal(size=(2, 50))
    first = paired_bootstrap(values[0], values[1], seed=5, resamples=500)
    assert first == paired_bootstrap(values[0], values[1], seed=5, resamples=500)
    assert first != paired_bootstrap(values[0], values[1], seed=6, resamples=500)


def test_bootstrap_p_is_uniform_enough_without_a_difference() -> None:
    generator = np.random.default_rng(7)
    p_values = []
    for trial in range(300):
        values = generator.normal(size=(2, 40))
        p_values.append(paired_bootstrap(*values, seed=trial, resamples=400).p)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.11
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_bootstrap_weighs_items() -> None:
    found = paired_bootstrap(
        np.array([-1.0, -30.0]),
        np.array([-1.0, -30.0]),
        model_weights=np.array([1.0, 10.0]),
        baseline_weights=np.array([1.0, 30.0]),
        scale="perplexity",
        resamples=100,
    )
    assert found.difference == pytest.approx(math.exp(31 / 11) - math.exp(31 / 31))


@pytest.mark.parametrize("n", [2, 3, 5, 6, 12])
def test_few_items_of_one_sign_show_no_more_than_a_sign_test(n: int) -> None:
    from scipy.stats import binomtest

    baseline = np.linspace(1.0, 2.0, n)
    found = paired_bootstrap(baseline + np.linspace(0.3, 0.4, n), baseline)
    assert found.p == pytest.approx(max(binomtest(0, n).pvalue, 2 / 5001))
    assert (found.low > 0) == (found.p < 0.05), "interval and p-value tell the same"
    assert found.low <= found.difference <= found.high


def test_one_item_has_neither_interval_nor_evidence() -> None:
    found = paired_bootstrap(np.array([2.5]), np.array([1.0]))
    assert (found.difference, found.interval, found.p) == (1.5, None, 1.0)
    assert paired_accuracy_difference(np.array([1.0]), np.array([0.0])).p == 1.0


def test_seeds_that_differ_equally_show_their_signs() -> None:
    found = paired_by_seed(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    assert found.p == 0.5
    assert found.low <= 0 < found.high


def test_resamples_without_weight_are_left_out() -> None:
    """Half of two items has no weight: a quarter of the resamples have no ratio at all."""
    values, weights = np.array([[3.0, 0.0, 1.0], [2.0, 0.0, 2.0]]), np.array([1.0, 0.0, 1.0])
    found = paired_bootstrap(
        *values, model_weights=weights, baseline_weights=weights, resamples=2000
    )
    assert found.p == 1.0, "one item is in favour, one against"
    assert (found.low, found.high) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="sum to zero"):
        paired_bootstrap(*values, model_weights=np.zeros(3), baseline_weights=weights)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("model", "baseline", "message"),
    [
        (np.array([1.0]), np.array([1.0, 0.0]), "differ in number"),
        (np.array([]), np.array([]), "no items"),
        (np.array([0.5]), np.array([1.0]), "0 or 1"),
    ],
)
def test_bad_outcomes_are_refused(model: np.ndarray, baseline: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_accuracy_difference(model, baseline)


def test_the_error_of_a_paired_difference_agrees_with_resampling() -> None:
    generator = np.random.default_rng(2)
    sizes = generator.integers(5, 400, 300).astype(float)
    hard = generator.uniform(0.5, 2.5, 300)
    model = -(sizes**0.7) * hard
    baseline = model - generator.uniform(0.0, 0.2, 300) * sizes**0.7
    found = paired_difference(
        model, baseline, model_weights=sizes, baseline_weights=sizes, scale="bits"
    )
    rows = generator.integers(0, 300, (4000, 300))
    totals = sizes[rows].sum(1)
    resampled = -(model[rows].sum(1) - baseline[rows].sum(1)) / totals / math.log(2)
    assert found.test == "paired-bootstrap"
    assert found.stderr == pytest.approx(resampled.std(), rel=0.06)
    alone = estimate(model, sizes, "bits").stderr
    assert alone is not None
    assert found.stderr is not None
    assert found.stderr < alone / 3


def test_right_or_wrong_is_tested_exactly_and_anything_else_by_resampling() -> None:
    right, wrong = np.array([1.0, 1, 0, 1]), np.array([1.0, 0, 0, 1])
    for weight, test in ((1.0, "mcnemar-exact"), (4.0, "paired-bootstrap")):
        weights = np.full(4, weight)
        found = paired_difference(right, wrong, model_weights=weights, baseline_weights=weights)
        assert found.test == test


def test_one_item_has_no_error_of_its_difference() -> None:
    assert paired_difference(np.array([2.5]), np.array([1.0])).stderr is None


def test_over_seeds_it_is_the_paired_t_test() -> None:
    from scipy import stats

    ours, theirs = np.array([2.41, 2.47, 2.39, 2.44]), np.array([2.50, 2.52, 2.49, 2.47])
    found = paired_by_seed(ours, theirs)
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx((ours - theirs).mean())
    with pytest.raises(ValueError, match="one seed"):
        paired_by_seed(ours[:1], theirs[:1])


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 40, 1000])
def test_student_against_scipy(freedom: int) -> None:
    from scipy import stats

    for t in (0.0, 0.3, 1.0, 2.5, 9.0, 60.0):
        expected = 2 * stats.t.sf(t, freedom)
        assert t_two_sided(t, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert t_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


def test_a_figure_over_seeds() -> None:
    found = over_seeds([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.spread == pytest.approx(np.std([1.0, 2.0, 4.0], ddof=1))
    assert found.stderr == pytest.approx(found.spread / math.sqrt(3))
    assert over_seeds([3.0]) == OverSeeds(3.0, 0.0, 0.0)
    assert over_seeds([1.0, None, 4.0]).mean is None
    assert over_seeds([1.0, None, 4.0]).spread == pytest.approx(np.std([1.0, 4.0], ddof=1))


def test_estimators_are_in_one_room() -> None:
    """Elsewhere nobody computes a spread, an error or bits; a median of times is no estimate."""
    wrong = []
    for module, path in sources().items():
        if module.startswith("wuneng.statistics"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "statistics":
                wrong += [f"{module}: {a.name}" for a in node.names if a.name != "median"]
            elif isinstance(node, ast.Import):
                wrong += [f"{module}: {a.name}" for a in node.names if a.name == "statistics"]
            elif isinstance(node, ast.Call) and ast.unparse(node) in (
                "math.log(2)",
                "math.log(2.0)",
            ):
                wrong.append(f"{module}: {ast.unparse(node)}")
    assert not wrong, wrong
