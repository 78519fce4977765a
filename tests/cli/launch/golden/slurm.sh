#!/bin/bash
#SBATCH --job-name=job
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=2-00:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=job-%j.log
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=mine
#SBATCH --constraint=h100
module load cuda
export A='b c'
srun python -m vit_jax train --config my/config.py --workdir 'a run'
status=$?
case $status in
75 | 137 | 143)
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    echo "vit_jax launch: exit status $status, queued again." >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi ;;
esac
exit $status
