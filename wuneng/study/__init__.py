"""Several runs that belong together: a sweep over values, or a study that is planned first.

parent      the directory of either, with the recipe as it was written
sweep       every combination of the values, and the best point of each arm
rungs, planning
            a study resolved: its sizes and lengths, its plan and the hash of it
tuning, stage
            every arm at the values to try; runs that are trained together
study       from plan to conclusion
conclusion  results.json, its table and its sentences
"""

from wuneng.study.equal_time import measured_widths
from wuneng.study.planning import plan_study
from wuneng.study.study import StudyResults, run_study
from wuneng.study.sweep import SweepResults, run_sweep

__all__ = [
    "StudyResults",
    "SweepResults",
    "measured_widths",
    "plan_study",
    "run_study",
    "run_sweep",
]
