#!/usr/bin/env bash
# Trains on the VMs of a TPU slice (one or many hosts), through gcloud.
#
#   tpu_vm.sh up --name=NAME --zone=ZONE --type=v5litepod-16 [options] \
#     -- --config=FILE.py --workdir=FOLDER [flags]
#
# up       all of it: creates, installs, runs; when the slice is preempted,
#          makes it anew and goes on; called again, it shows the run
# create   asks for the slice (a queued resource) and waits for it
# install  copies this working tree to all hosts and installs what it needs
# run      runs the training on all hosts (-- flags) and shows its output
# stop     ends the training: it saves first
# status   what Google Cloud says of the slice
# delete   gives it back; from then on it costs nothing
#
# --name=NAME         of the queued resource and of its TPU
# --zone=ZONE         such as us-central1-a
# --type=TYPE         such as v5litepod-16, v6e-64, v5p-32, v4-8 (up, create)
# --project=PROJECT   default: gcloud's own
# --version=VERSION   the VM's software; default: Google's for the type
# --spot              cheap, and can be preempted
# --setup=COMMAND     runs on every host before the training, such as a mount
# --max-restarts=3    after crashes; preemptions do not count
# --poll=30           seconds between two looks at the slice's state
# --dry-run           prints the commands
#
# The work directory and the data have to be in a folder that all hosts share
# and that outlives the slice (Filestore, NFS): see README.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

choose 'up create install run stop status delete' "$@"
shift
name='' zone='' type='' project='' version='' spot='' setup=''
max_restarts=3 poll=30
options "name= zone= type= project= version= spot setup= max-restarts= poll=" \
  "$@"
set -- "${rest[@]}"
[[ $name ]] || fail "no name: give one with --name=NAME"
[[ $zone ]] || fail "no zone: give one with --zone=ZONE, such as us-central1-a"
whole_number --max-restarts "$max_restarts" 0
whole_number --poll "$poll" 0
case $action in
  up | run) check_flags "$@" ;;
  *) (($# == 0)) || fail "flags of the training belong to up and run" ;;
esac
case $action in
  up | create)
    [[ $type ]] ||
      fail "no type: give one with --type=TYPE, such as v5litepod-16"
    case $type in
      v5litepod-*) known=v2-alpha-tpuv5-lite ;;
      v5p-*) known=v2-alpha-tpuv5 ;;
      v6e-*) known=v2-alpha-tpuv6e ;;
      v[234]-*) known=tpu-ubuntu2204-base ;;
      *) known='' ;;
    esac
    version=${version:-$known}
    [[ $version ]] ||
      fail "--type=$type: give its software with --version=VERSION"
    ;;
esac
need gcloud "see https://cloud.google.com/sdk/docs/install"

where=("--zone=$zone")
[[ ! $project ]] || where+=("--project=$project")
tpus=(gcloud compute tpus)
archive=${TMPDIR:-/tmp}/astjax-$$.tar.gz

create() {
  run "${tpus[@]}" queued-resources create "$name" "--node-id=$name" \
    "${where[@]}" "--accelerator-type=$type" "--runtime-version=$version" \
    ${spot:+--spot} --quiet || return
  await_active
}

# NONE where there is no such resource, empty where gcloud cannot tell.
state() {
  local errors
  errors=$(mktemp)
  if ! "${tpus[@]}" queued-resources describe "$name" "${where[@]}" \
    "--format=value(state.state)" 2>"$errors"; then
    if grep -q NOT_FOUND "$errors"; then
      echo NONE
    else
      cat "$errors" >&2
    fi
  fi
  rm -f "$errors"
}

# Fails with 3 if it is taken away before it is there.
await_active() {
  local now='' last='' misses=0
  if [[ $dry_run ]]; then
    echo "# wait until it is ACTIVE"
    return
  fi
  while [[ $now != ACTIVE ]]; do
    now=$(state)
    [[ $now == "$last" ]] || say "$name is ${now:-unknown}"
    last=$now
    case $now in
      ACTIVE) return ;;
      SUSPEND*) return 3 ;;
      '' | NONE) misses=$((misses + 1)) ;;
    esac
    if [[ $now =~ ^(FAILED|DELETING)$ ]] || ((misses > 5)); then
      say "$name cannot be had: ${now:-unknown}"
      exit 1
    fi
    sleep "$poll"
  done
}

on_all_hosts() { # COMMAND
  # Without signs of life ssh does not notice that a host is gone.
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet \
    --ssh-flag=-oServerAliveInterval=30 "--command=$1"
}

# The VMs' own Python is older than what astjax needs; uv fetches one.
install() {
  trap 'rm -f "$archive"' EXIT
  run tar -C "${here%/*}" --exclude=__pycache__ -czf "$archive" astjax configs \
    launch pyproject.toml requirements.txt requirements-tpu.txt &&
    run "${tpus[@]}" tpu-vm scp "$archive" "$name:astjax.tar.gz" "${where[@]}" \
      --worker=all --quiet &&
    on_all_hosts "set -e; mkdir -p astjax; tar -C astjax -xzf astjax.tar.gz; \
cd astjax; python3 -m pip install --user --quiet uv; \
python3 -m uv venv --quiet --allow-existing --python=3.12 .venv; \
python3 -m uv pip install --quiet --python=.venv -r requirements-tpu.txt; \
touch .venv/ready"
}

# Goes on where this connection ends; called again, it finds the run.
train() {
  on_all_hosts "set -e; cd astjax; ${setup:+$setup; }$(quoted launch/detached.sh ../astjax-run -- \
    launch/supervise.sh "--max-restarts=$max_restarts" -- \
    .venv/bin/python -m astjax.main "$@")"
}

give_back=("${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force
  --quiet)
delete() {
  run "${give_back[@]}"
}

up() {
  local failures=0 misses=0 code now
  if [[ $dry_run ]]; then
    create
    install
    train "$@"
    later "when it is preempted, then again from the top" "${give_back[@]}"
    return
  fi
  while true; do
    now=$(state)
    case $now in
      ACTIVE) ;;
      SUSPENDING | DELETING)
        sleep "$poll"
        continue
        ;;
      SUSPENDED | FAILED)
        say "$name is $now: making it anew"
        delete
        continue
        ;;
      NONE)
        create || {
          (($? == 3)) || exit 1
          continue
        }
        ;;
      '') # no connection, maybe
        misses=$((misses + 1))
        ((misses <= 20)) || exit 1
        sleep "$poll"
        continue
        ;;
      *) await_active || continue ;;
    esac
    misses=0
    code=1
    if on_all_hosts "test -e astjax/.venv/ready" &>/dev/null || install; then
      code=0
      train "$@" || code=$?
    fi
    case $code in 0 | 2) exit "$code" ;; esac
    # A preempted slice may seem to be there for a moment.
    sleep $((2 * poll))
    [[ $(state) == ACTIVE ]] || continue
    case $code in
      130 | 143) # a preemption may be slow to show
        ! on_all_hosts "test -e astjax-run/asked" &>/dev/null || exit "$code"
        ;;
    esac
    failures=$((failures + 1))
    ((failures <= max_restarts)) || exit "$code"
    say "exit code $code; attempt $failures of $max_restarts"
  done
}

case $action in
  up) up "$@" ;;
  run) train "$@" ;;
  stop) on_all_hosts "cd astjax && launch/detached.sh --stop ../astjax-run" ;;
  status)
    run "${tpus[@]}" queued-resources describe "$name" "${where[@]}"
    ;;
  *) "$action" ;;
esac
