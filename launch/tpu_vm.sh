#!/usr/bin/env bash
# Trains on all hosts of a TPU slice, and makes it anew after a preemption.
#
#   NAME=ast ZONE=us-central1-a TYPE=v5litepod-16 SPOT=1 launch/tpu_vm.sh \
#     --config=configs/ast_audioset.py --workdir=/shared/runs/a
#
# NAME      of the queued resource and of its TPU
# ZONE      such as us-central1-a; the project is the one gcloud is set to
# TYPE      such as v5litepod-16, v6e-64, v5p-32, v4-8
# VERSION   the VMs' software (Google's for the type)
# SPOT      1: cheap, and can be preempted
# SETUP     a command for every host before the training, such as a mount
# RESTARTS  after crashes (3); preemptions do not count
# POLL      seconds between two looks at the slice's state (30)
#
# The training does not depend on this script: Ctrl-C leaves it running, and the
# same command shows it again. Nor is the slice deleted at the end: see
# README.md, also for the folder that all hosts have to share.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
(: "${1:?expected --config=FILE.py --workdir=FOLDER}") || exit 2
(: "${NAME:?}" "${ZONE:?}" "${TYPE:?}") || exit 2
: "${RESTARTS:=3}" "${POLL:=30}"
case $TYPE in
  v5litepod-*) : "${VERSION:=v2-alpha-tpuv5-lite}" ;;
  v5p-*) : "${VERSION:=v2-alpha-tpuv5}" ;;
  v6e-*) : "${VERSION:=v2-alpha-tpuv6e}" ;;
  v[234]-*) : "${VERSION:=tpu-ubuntu2204-base}" ;;
esac
(: "${VERSION:?}") || exit 2

tpus=(gcloud compute tpus)
where=("--zone=$ZONE" --quiet)

# The tree as it is now, also for a slice that is made anew in three days.
temporary=$(mktemp -d) || exit
trap 'rm -r "$temporary"' EXIT
trap 'exit 130' INT # gcloud ends by itself, and would be tried again
tar --exclude=__pycache__ -czf "$temporary/astjax.tar.gz" astjax configs \
  launch pyproject.toml requirements.txt requirements-tpu.txt || exit

# NONE where there is no such resource, nothing where gcloud cannot tell.
state() {
  "${tpus[@]}" queued-resources describe "$NAME" "${where[@]}" \
    --format="value(state.state)" 2>"$temporary/errors" && return
  if grep -q NOT_FOUND "$temporary/errors"; then
    echo NONE
  else
    cat "$temporary/errors" >&2
  fi
}

on_all_hosts() { # COMMAND
  # Without signs of life ssh does not notice that a host is gone.
  "${tpus[@]}" tpu-vm ssh "$NAME" "${where[@]}" --worker=all \
    --ssh-flag=-oServerAliveInterval=30 "--command=$1"
}

# The VMs' own Python is older than what astjax needs; uv fetches one.
install() {
  "${tpus[@]}" tpu-vm scp "$temporary/astjax.tar.gz" "$NAME:" "${where[@]}" \
    --worker=all &&
    on_all_hosts "set -e; mkdir -p astjax; cd astjax; tar -xzf ../astjax.tar.gz
python3 -m pip install --user --quiet uv
python3 -m uv venv --quiet --allow-existing --python=3.12 .venv
python3 -m uv pip install --quiet --python=.venv -r requirements-tpu.txt"
}

train() { # FLAGS...
  # The tree of a run that goes on stays as it is.
  on_all_hosts "cd astjax && ! flock --nonblock run.lock true" &>/dev/null ||
    install || return 1
  on_all_hosts "set -e; cd astjax; ${SETUP:-:}
RESTARTS=$RESTARTS launch/tpu_host.sh ${*@Q}"
}

failures=0
fail() { # EXIT_CODE
  ((++failures <= RESTARTS)) || exit "$1"
  echo "exit code $1: attempt $failures of $RESTARTS" >&2
  sleep "$POLL"
}

while true; do
  now=$(state)
  [[ $now == "${last:-}" ]] || echo "$NAME is ${now:-unknown}" >&2
  last=$now
  case $now in
    NONE)
      "${tpus[@]}" queued-resources create "$NAME" "--node-id=$NAME" \
        "${where[@]}" "--accelerator-type=$TYPE" "--runtime-version=$VERSION" \
        ${SPOT:+--spot} || fail 1
      ;;
    ACTIVE)
      SECONDS=0
      train "$@"
      code=$?
      case $code in 0 | 2) exit "$code" ;; esac
      ((SECONDS < 600)) || failures=0
      sleep $((2 * POLL)) # a preempted slice may seem to be there for a moment
      [[ $(state) != ACTIVE ]] || fail "$code"
      ;;
    SUSPENDED | FAILED)
      [[ $now == SUSPENDED ]] || fail 1
      "${tpus[@]}" queued-resources delete "$NAME" "${where[@]}" --force
      ;;
    *) sleep "$POLL" ;; # it is on its way, or there is no connection
  esac
done
