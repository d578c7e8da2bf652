"""Recipes: YAML files that state a comparison, checked before anything heavy is imported."""

from wuneng.recipe.arms import BUILT_IN_ARMS, Arm
from wuneng.recipe.data import HubDataset, QuestionFields, SyntheticData, TextData, TrainedTokenizer
from wuneng.recipe.dump import dump_recipe
from wuneng.recipe.load import WrittenRecipe, load_recipe, read_written
from wuneng.recipe.model import ModelSettings
from wuneng.recipe.parallel import Parallel
from wuneng.recipe.schema import SOURCE_TOKENIZER, Recipe
from wuneng.recipe.sizes import parse_size
from wuneng.recipe.stages import AlignStage, DistillStage, Stage, TuneStage
from wuneng.recipe.study import Ladder, Study
from wuneng.recipe.sweep import Point, points_of
from wuneng.recipe.task_settings import CurriculumStage, RecallTask, StateTrackingTask, TaskSettings
from wuneng.recipe.training import EndEvaluation, OptimizerSettings, Spikes, Training
from wuneng.recipe.upgrade import Distillation, LogitLoss, LoraSettings

__all__ = [
    "BUILT_IN_ARMS",
    "SOURCE_TOKENIZER",
    "AlignStage",
    "Arm",
    "CurriculumStage",
    "DistillStage",
    "Distillation",
    "EndEvaluation",
    "HubDataset",
    "Ladder",
    "LogitLoss",
    "LoraSettings",
    "ModelSettings",
    "OptimizerSettings",
    "Parallel",
    "Point",
    "QuestionFields",
    "RecallTask",
    "Recipe",
    "Spikes",
    "Stage",
    "StateTrackingTask",
    "Study",
    "SyntheticData",
    "TaskSettings",
    "TextData",
    "TrainedTokenizer",
    "Training",
    "TuneStage",
    "WrittenRecipe",
    "dump_recipe",
    "load_recipe",
    "parse_size",
    "points_of",
    "read_written",
]
