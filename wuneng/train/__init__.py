"""Training: ``run`` takes a recipe through all its arms and compares them.

plan         the recipe, resolved once: what every arm is; outline, vocabulary and arms find it
run          arms and seeds, run directory, results.json
opening, units, pending
             the directory opened, what is left to train, and training it in turn
unit_queue   who trains what, among the commands that work on the run
side_by_side, unit_group, unit_process
             or next to each other, each in a process of its own, or in a group of them
arm_run      one arm: build, train, score, save
starting_point, trainable, lora, distillation
             arms that start from a model: what is loaded, what of it trains, who teaches
loop         its training, from the first step or the last checkpoint to the last step
step         one optimiser step
checkpoint   what is saved, verified and rotated
quality      what a model scores on each row of fixed batches
figures      the figures that rows of scores add up to
paired       differences between arms, row by row or seed by seed
summary      the closing table and sentence, by the rules in verdicts and upgrade_summary
"""

from wuneng.train.display import Display, make_display
from wuneng.train.progress import Progress
from wuneng.train.run import Results, run
from wuneng.train.signals import Interrupted
from wuneng.train.workers import Workers

__all__ = ["Display", "Interrupted", "Progress", "Results", "Workers", "make_display", "run"]
