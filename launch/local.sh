#!/usr/bin/env bash
# Trains on this machine, and starts again after a crash.
#
#   launch/local.sh --config=configs/ast_folder.py --workdir=runs/a
#   PROCESSES=4 launch/local.sh --config=... --workdir=...  # one for each GPU
#
# PROCESSES             how many train together, each on one GPU; without it
#                       one process uses all devices that JAX sees
# CUDA_VISIBLE_DEVICES  which GPUs (all), such as 0,2,5
# PYTHON                the Python to use (.venv/bin/python of the repository)
#
# RESTARTS and PAUSE are those of supervise.sh.
set -euo pipefail
here=$(dirname "$0")
train=("$here/supervise.sh" "${PYTHON:-$here/../.venv/bin/python}"
  -m astjax.main "$@")
((${PROCESSES:-1} > 1)) || exec "${train[@]}"

all=$(seq --separator=, 0 $((PROCESSES - 1)))
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-$all}"
if ((${#gpus[@]} < PROCESSES)); then
  echo "PROCESSES=$PROCESSES, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES" >&2
  exit 2
fi

children=() told=''
tell() { # SIGNAL
  told=$1
  kill -s "$1" "${children[@]}" 2>/dev/null || true
}
for name in TERM INT HUP USR1; do
  # shellcheck disable=SC2064
  trap "tell $name" "$name"
done

# Each is supervised by itself: when one is lost, the others notice, end, and
# are started again as well.
port=$((20000 + RANDOM % 12000))
set -m # as in supervise.sh
for ((i = 0; i < PROCESSES; i++)); do
  CUDA_VISIBLE_DEVICES=${gpus[i]} "${train[@]}" \
    --coordinator="127.0.0.1:$port" --num_processes="$PROCESSES" \
    --process_id="$i" &
  children+=("$!")
done
[[ ! $told ]] || tell "$told" # it came before all had begun

# A signal ends a `wait`, whose code then is that of the signal; the second loop
# waits for those that are still saving.
code=0
for child in "${children[@]}"; do
  last=0
  wait "$child" || last=$?
  ((last == 0 || code == 2)) || code=$last
done
until wait; do :; done
exit "$code"
