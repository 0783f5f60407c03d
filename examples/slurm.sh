#!/bin/bash
#SBATCH --job-name=opd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --signal=SIGTERM@300
#SBATCH --requeue
# sbatch examples/slurm.sh run.yaml out=/shared/runs/mine
# SIGTERM comes five minutes before the limit; the run then saves a checkpoint, and a requeued job goes on from it.
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    -m opd train "$@" --resume
