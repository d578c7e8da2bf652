"""Several runs that belong together: a sweep over values, or a study that is planned first.

parent     the directory of either, with the recipe as it was written
sweep      every combination of the values, and the best point of each arm
"""

from wuneng.study.sweep import SweepResults, run_sweep

__all__ = ["SweepResults", "run_sweep"]
