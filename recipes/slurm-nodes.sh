#!/bin/bash
# Every arm in all GPUs of several machines together:
#   sbatch --nodes 4 recipes/slurm-nodes.sh RECIPE [OPTIONS]
# Ten minutes before the time is up, and before a node is taken away, the step is finished and saved;
# the job is then queued again and goes on. Options of sbatch above the script's name win over these.
#SBATCH --job-name=wuneng
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
stopped=0
srun torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$first:29500" \
  --max-restarts 3 \
  --shutdown-timeout 570 \
  -m wuneng_cli train "$@" --out "runs/slurm-$SLURM_JOB_ID" &
trap 'stopped=1; kill -TERM $!' TERM
wait $!
code=$?
if [ "$stopped" = 1 ]; then
  wait $!
  code=$?
  if [ ! -e "runs/slurm-$SLURM_JOB_ID/results.json" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
