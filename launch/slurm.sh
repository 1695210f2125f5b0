#!/usr/bin/env bash
# Trains under SLURM, saves before the time limit, and goes on in the next slot.
#
#   sbatch [options of sbatch] launch/slurm.sh [--max-restarts=3] \
#     [--max-requeues=100] [--grace=100] [--dry-run] \
#     -- --config=FILE.py --workdir=FOLDER [flags]
#
# Submit it from the repository's folder; without sbatch, --dry-run shows what
# the job would do. Options of sbatch replace those below. One process per node
# (--gpus-per-node=8) or one per GPU (--gpus-per-node=8 --ntasks-per-node=8).
#
# 120 s before the time limit (--signal) the trainer is told to save and end,
# and the job is put back into the queue: once it has ended, or after --grace
# seconds without waiting any longer. A crash is tried again in the same job,
# --max-restarts times. A mistake, scancel and the training's end are final.
# $PYTHON is the Python to use (default: .venv of the repository, else python3).
#SBATCH --job-name=astjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
# SLURM runs a copy of this file; the folder it was submitted from is the place.
root=${SLURM_SUBMIT_DIR:-$PWD}
if [[ ! -e $root/launch/lib.sh ]]; then
  echo "slurm.sh: error: no launch/lib.sh in $root: submit from the" \
    "repository's folder" >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$root/launch/lib.sh"

max_restarts=3 max_requeues=100 grace=100
options "max-restarts= max-requeues= grace=" "$@"
set -- "${rest[@]}"
whole_number --max-restarts "$max_restarts" 0
whole_number --max-requeues "$max_requeues" 0
whole_number --grace "$grace" 1
check_flags "$@"
[[ $dry_run || ${SLURM_JOB_ID:-} ]] ||
  fail "this is a job for sbatch: sbatch launch/slurm.sh -- ... (or --dry-run)"
need srun "run this with sbatch on a SLURM cluster"
find_python "$root"
job=${SLURM_JOB_ID:-JOB}

# They end each other, with the exit code of the one that failed.
step=(srun --kill-on-bad-exit=0)
[[ ! ${SLURM_CPUS_PER_TASK:-} ]] || # srun does not take it over by itself
  step+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
words=("$root/launch/supervise.sh" "--max-restarts=$max_restarts" --
  "${step[@]}" "$python" -m astjax.main "$@")
if [[ $dry_run ]]; then
  run "${words[@]}"
  later "after SIGUSR1" scontrol requeue "$job"
  exit
fi

requeue() { # WHY
  if ((${SLURM_RESTART_COUNT:-0} >= max_requeues)); then
    say "$1; not put back into the queue: it was $max_requeues times already"
    exit 1
  fi
  say "$1; back into the queue"
  scontrol requeue "$job"
}

# supervise.sh passes SIGUSR1 on to srun, and srun to all processes. SIGTERM
# would make srun kill them.
child='' asked='' told='' late=''
forward() {
  signals=$((signals + 1))
  kill -s USR1 "$child" 2>/dev/null || true
}
ask() {
  forward
  [[ ! $asked ]] || return 0
  asked=1
  # Who has not saved by then goes on from the checkpoint before.
  (
    sleep "$grace" &>/dev/null
    requeue "not saved within $grace s"
  ) &
  late=$!
}
trap ask USR1
trap 'told=1; forward' TERM
"${words[@]}" &
child=$!
await "$child"
[[ ! $late ]] || kill "$late" 2>/dev/null || true

# scancel, the end of the time and a preemption send SIGTERM, to this script, to
# the processes (143) or to both; a preempted job is still running for SLURM.
if [[ ! $asked ]]; then
  if [[ $told ]] || ((code == 143)); then
    [[ $(squeue --noheader --jobs="$job" --format=%T) != RUNNING ]] || asked=1
  elif ((code == 138)); then
    asked=1 # --signal without B: the processes got it
  fi
fi
case $code in 0 | 2) asked='' ;; esac
[[ $asked ]] || exit "$code"
requeue "exit code $code"
