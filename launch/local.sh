#!/usr/bin/env bash
# Trains on this machine, and starts again after a crash.
#
#   local.sh [--processes=N [--grace=10]] [--max-restarts=3] [--dry-run] \
#     -- --config=FILE.py --workdir=FOLDER [flags]
#
# Without --processes one process uses all devices that JAX sees
# (CUDA_VISIBLE_DEVICES chooses among them). With --processes=N there are N that
# train together, the i-th with the i-th GPU; when one fails, all end: by
# themselves within --grace seconds, or they are stopped.
# $PYTHON is the Python to use (default: .venv of the repository, else python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

processes='' max_restarts=3 grace=10
options "processes= max-restarts= grace=" "$@"
set -- "${rest[@]}"
whole_number --max-restarts "$max_restarts" 0
whole_number --grace "$grace" 0
[[ ! $processes ]] || whole_number --processes "$processes" 2
check_flags "$@"
find_python "${here%/*}"

# Supervision is a process around this one, so that N processes start together.
if ((max_restarts)); then
  again=("$python" -m astjax.main)
  [[ ! $processes ]] ||
    again=("$here/local.sh" "--processes=$processes" --max-restarts=0
      "--grace=$grace" --)
  become "$here/supervise.sh" "--max-restarts=$max_restarts" -- \
    "${again[@]}" "$@"
elif [[ ! $processes ]]; then
  become "$python" -m astjax.main "$@"
fi
[[ $processes ]] || exit 0

together=(--coordinator="127.0.0.1:$((20000 + RANDOM % 12000))"
  --num_processes="$processes")
gpus=()
if [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then
  IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  ((${#gpus[@]} >= processes)) ||
    fail "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES has fewer devices than" \
      "--processes=$processes"
fi
pids=() stopped='' asked='' code=0
stop() { # SIGNAL
  ((${#pids[@]} == 0)) || kill -s "$1" "${pids[@]}" 2>/dev/null || true
}
for name in TERM INT HUP USR1; do
  # shellcheck disable=SC2064
  trap "stopped=$name; stop $name" "$name"
done
set -m # see supervise.sh
for ((i = 0; i < processes; i++)); do
  words=(env "CUDA_VISIBLE_DEVICES=${gpus[i]:-$i}" "$python" -m astjax.main "$@"
    "${together[@]}" "--process_id=$i")
  if [[ $dry_run ]]; then
    later "which starts" "${words[@]}"
  else
    "${words[@]}" &
    pids+=("$!")
  fi
done

[[ ! $stopped ]] || stop "$stopped" # it came before all had begun

# The first failure ends the others, who hear of it; who does not is asked to
# end, and killed 30 s later.
while ((${#pids[@]})); do
  sleep 0.5 &
  wait "$!" || true
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    ended=0
    wait "${pids[i]}" || ended=$?
    unset "pids[i]"
    if ((ended && code == 0)); then
      code=$ended SECONDS=0 asked=''
      [[ $stopped ]] || say "process $i ended with code $code; so do the others"
    fi
    # The others end with 1 where one met a mistake, which is final.
    ((ended != 2)) || code=2
  done
  if ((code && SECONDS >= grace + 30)); then
    stop KILL
  elif ((code && SECONDS >= grace)) && [[ ! $asked ]]; then
    asked=1
    stop TERM
  fi
done
exit "$code"
