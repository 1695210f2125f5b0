#!/usr/bin/env bash
# Runs a command, and runs it again when it crashes.
#
#   supervise.sh [--max-restarts=3] [--backoff=10] [--dry-run] -- COMMAND...
#
# The pause before a restart is --backoff seconds, then twice as long each time,
# at most 300. Who has run for ten minutes begins anew with both. There is no
# restart after success (exit code 0), a mistake (2, or 126 and 127: no such
# command) or a stop by a signal (SIGHUP 129, SIGINT 130, SIGUSR1 138,
# SIGTERM 143). SIGTERM, SIGINT, SIGHUP and SIGUSR1 are passed on to the
# command; the script then waits for it. The exit code is the command's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

max_restarts=3 backoff=10
options "max-restarts= backoff=" "$@"
set -- "${rest[@]}"
whole_number --max-restarts "$max_restarts" 0
whole_number --backoff "$backoff" 0
(($#)) || fail "no command: expected -- COMMAND..."

if [[ $dry_run ]]; then
  run "$@"
  exit
fi

child='' stopped=''
forward() {
  stopped=$1
  signals=$((signals + 1))
  [[ ! $child ]] || kill -s "$1" "$child" 2>/dev/null || true
}
for name in TERM INT HUP USR1; do
  # shellcheck disable=SC2064
  trap "forward $name" "$name"
done

watch() { # PID
  child=$1
  [[ ! $stopped ]] || forward "$stopped" # it came just before
  await "$child"
  child=
}

# Job control gives children a process group of their own, so that Ctrl-C comes
# to them once, through `forward`, and is not ignored as in plain background.
set -m
pause=$backoff
for ((restart = 1; ; restart++)); do
  SECONDS=0
  "$@" &
  watch "$!"
  [[ ! $stopped ]] || exit "$code"
  case $code in 0 | 2 | 126 | 127 | 129 | 130 | 138 | 143) exit "$code" ;; esac
  ((SECONDS < ${HEALTHY_SECONDS:-600})) || restart=1 pause=$backoff
  if ((restart > max_restarts)); then
    say "exit code $code; no restart is left of $max_restarts"
    exit "$code"
  fi
  say "exit code $code; restart $restart of $max_restarts in $pause s"
  sleep "$pause" &
  watch "$!"
  [[ ! $stopped ]] || exit $((128 + $(kill -l "$stopped")))
  pause=$((pause < 150 ? 2 * pause : 300))
done
