#!/usr/bin/env bash
# Trains under SLURM, saves before the time limit, and goes on in the next slot.
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=12:00:00 launch/slurm.sh \
#     --config=configs/ast_audioset.py --workdir=runs/a
#
# Submit it from the repository's folder. Options of sbatch replace those below.
# One process for each node, or for each GPU (with --ntasks-per-node=8).
#
# PYTHON  the Python to use (.venv/bin/python)
#
# RESTARTS and PAUSE are those of supervise.sh, for crashes. A mistake, scancel
# and the end of the training are final.
#SBATCH --job-name=astjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

# srun does not take this one over by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Told to stop, each process saves first. Where one fails, JAX ends the others,
# most often with code 134. So srun must not kill any.
launch/supervise.sh srun --kill-on-bad-exit=0 \
  "${PYTHON:-.venv/bin/python}" -m astjax.main "$@"
code=$?

# They were told to save and end: by SIGUSR1, 120 s before the time limit, or by
# the SIGTERM of a preemption or of scancel. After scancel the job is no longer
# a running one.
case $code in
  138 | 143)
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    [[ $state != RUNNING ]] || exec scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$code"
