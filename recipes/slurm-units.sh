#!/bin/bash
# The arms, seeds and points of one recipe, shared by several machines that work on one run:
#   sbatch --array 1-4 recipes/slurm-units.sh RECIPE [OPTIONS]
# Each trains as many units at a time as it has GPUs, takes over what a machine that has died was
# at, and stays until all is done. More may be added at any time with the same --out:
#   OUT=runs/mine sbatch --array 5-8 recipes/slurm-units.sh RECIPE [OPTIONS]
#SBATCH --job-name=wuneng
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
exec srun python -m wuneng_cli train "$@" --out "${OUT:-runs/slurm-$SLURM_ARRAY_JOB_ID}"
