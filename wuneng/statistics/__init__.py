"""The one set of estimators that training and evaluation share. Numpy only.

Every metric here is a function of a ratio of sums over items, ``x = Σ values / Σ weights``:

    scale "mean"        x                 accuracies, losses, any per-item score
    scale "perplexity"  exp(-x)           values: log-likelihoods in nats; weights: one, or tokens
    scale "bits"        -x / ln 2         values: log-likelihoods in nats; weights: bytes

so one delta-method standard error and one bootstrap serve all of them. Pairing matters more than
any of it: two models answer the same items, and most of the variance is the items' own.

    estimates     a metric's value and standard error
    paired        two models on the same items, or two arms over the same seeds
    seeds         one arm over the seeds that it was trained from
    student       Student's t distribution, for intervals over few seeds
    corrections   Holm's correction for several comparisons
    sample_size   the smallest difference that n seeds show, and the seeds that one needs

Sources: McNemar (1947), exact conditional form; Bonett and Price (2012), "Adjusted Wald confidence
interval for a difference of binomial proportions based on paired data"; Efron and Tibshirani
(1993), percentile bootstrap; Holm (1979).
"""

from wuneng.statistics.corrections import holm
from wuneng.statistics.estimates import Array, Estimate, Scale, estimate
from wuneng.statistics.paired import (
    NORMAL_95,
    PairedDifference,
    mcnemar_exact,
    paired_accuracy_difference,
    paired_bootstrap,
    paired_by_seed,
    paired_difference,
)
from wuneng.statistics.sample_size import (
    equivalence_power,
    minimum_detectable_effect,
    power,
    seeds_needed,
)
from wuneng.statistics.seeds import OverSeeds, over_seeds
from wuneng.statistics.student import t_quantile, t_two_sided

__all__ = [
    "NORMAL_95",
    "Array",
    "Estimate",
    "OverSeeds",
    "PairedDifference",
    "Scale",
    "equivalence_power",
    "estimate",
    "holm",
    "mcnemar_exact",
    "minimum_detectable_effect",
    "over_seeds",
    "paired_accuracy_difference",
    "paired_bootstrap",
    "paired_by_seed",
    "paired_difference",
    "power",
    "seeds_needed",
    "t_quantile",
    "t_two_sided",
]
