#!/usr/bin/env bash
# Runs a command that outlives the connection it was started from.
#
#   detached.sh [--dry-run] FOLDER -- COMMAND...
#   detached.sh --stop FOLDER
#
# Starts the command in the background, with its output in FOLDER/log, shows
# that output, and ends with the command's exit code. Where a command of this
# folder is still running, none is started: its output is shown instead. So it
# can be called again after a connection was lost. --stop sends SIGTERM and
# waits; FOLDER/asked tells of it until the next start.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stop='' folder=''
while (($#)); do
  case $1 in
    --stop) stop=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    --)
      shift
      break
      ;;
    -*) fail "unexpected argument $1" ;;
    *)
      [[ ! $folder ]] || fail "unexpected argument $1; a command comes after --"
      folder=$1
      ;;
  esac
  shift
done
[[ $folder ]] || fail "no folder: expected FOLDER -- COMMAND..."
[[ $stop ]] || (($#)) || fail "no command: expected FOLDER -- COMMAND..."
if [[ $dry_run ]]; then
  [[ $stop ]] || run "$@"
  exit
fi
need flock "it belongs to util-linux"
mkdir -p "$folder"

# The command keeps the lock for as long as it runs, even if this machine lives
# on and this script does not.
exec {lock}>>"$folder/lock"
running() { ! flock --nonblock "$lock"; }

if [[ $stop ]]; then
  running || exit 0
  : >"$folder/asked"
  until [[ -s $folder/pid ]] || ! running; do # it has only just begun
    sleep 0.1
  done
  kill -s TERM "$(<"$folder/pid")" 2>/dev/null || true
  flock "$lock"
  exit
fi
if running; then
  say "it is running already; here is its output"
else
  rm -f "$folder/code" "$folder/pid" "$folder/asked"
  : >"$folder/log"
  # shellcheck disable=SC2016
  setsid bash -c '
    folder=$1
    shift
    "$@" &
    echo "$!" >"$folder/pid"
    wait "$!"
    echo "$?" >"$folder/code"
  ' detached "$folder" "$@" >"$folder/log" 2>&1 </dev/null &
  disown
  exec {lock}>&- {lock}>>"$folder/lock"
fi

tail -n +1 -F --pid="$$" "$folder/log" 2>/dev/null {lock}>&- &
flock "$lock"
sleep 1
kill "$!"
if ! code=$(cat "$folder/code" 2>/dev/null); then
  say "the command was killed"
  code=137
fi
exit "$code"
