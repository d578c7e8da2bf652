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
    components    how much of the uncertainty is the seeds' and how much the items'
    crossed       two arms over seeds and items at once
    equivalence   better, worse, no difference that matters, or undecided
    tokens_saved  how many fewer tokens an arm needs for the baseline's loss
    scaling       loss against parameters and tokens
    student       Student's t distribution, for intervals over few seeds
    corrections   Holm's correction for several comparisons
    sample_size   the smallest difference that n seeds show, and the seeds that one needs

Sources: McNemar (1947), exact conditional form; Bonett and Price (2012), "Adjusted Wald confidence
interval for a difference of binomial proportions based on paired data"; Efron and Tibshirani
(1993), percentile bootstrap; Holm (1979).
"""

from wuneng.statistics.components import Components, components
from wuneng.statistics.corrections import holm
from wuneng.statistics.crossed import crossed_components, crossed_difference
from wuneng.statistics.equivalence import Conclusion, Equivalence, conclude, equivalence
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
from wuneng.statistics.scaling import Point, ScalingFit, fit_scaling, scaling_bands
from wuneng.statistics.seeds import OverSeeds, over_seeds
from wuneng.statistics.student import t_quantile, t_two_sided
from wuneng.statistics.tokens_saved import Curve, TokensSaved, tokens_saved, tokens_to_reach

__all__ = [
    "NORMAL_95",
    "Array",
    "Components",
    "Conclusion",
    "Curve",
    "Equivalence",
    "Estimate",
    "OverSeeds",
    "PairedDifference",
    "Point",
    "Scale",
    "ScalingFit",
    "TokensSaved",
    "components",
    "conclude",
    "crossed_components",
    "crossed_difference",
    "equivalence",
    "equivalence_power",
    "estimate",
    "fit_scaling",
    "holm",
    "mcnemar_exact",
    "minimum_detectable_effect",
    "over_seeds",
    "paired_accuracy_difference",
    "paired_bootstrap",
    "paired_by_seed",
    "paired_difference",
    "power",
    "scaling_bands",
    "seeds_needed",
    "t_quantile",
    "t_two_sided",
    "tokens_saved",
    "tokens_to_reach",
]
