#!/usr/bin/env bash
# Runs a command, and runs it again when it crashes.
#
#   RESTARTS=3 PAUSE=10 launch/supervise.sh COMMAND...
#
# RESTARTS  at most so many (3); a command that has run for HEALTHY seconds
#           (600) before it crashed begins to count anew
# PAUSE     seconds before the first restart (10), twice that before the second
#
# There is no restart after success (exit code 0), a mistake (2; 126 and 127 if
# the command cannot be run) or a stop by SIGHUP, SIGINT, SIGUSR1 or SIGTERM
# (129, 130, 138, 143). These signals are passed on to the command, and this
# script waits for it. The exit code is the command's.
set -uo pipefail
(: "${1:?expected a command}") || exit 2

child='' told='' signals=0
tell() { # SIGNAL
  told=$1 signals=$((signals + 1))
  [[ ! $child ]] || kill -s "$1" "$child" 2>/dev/null
}
for name in TERM INT HUP USR1; do
  # shellcheck disable=SC2064
  trap "tell $name" "$name"
done

# Sets `code` to the exit code of a command.
run() { # COMMAND...
  "$@" &
  child=$!
  [[ ! $told ]] || tell "$told" # it came before the command had begun
  # A signal ends `wait`, but not the command: wait until none has come.
  local before
  while
    before=$signals code=0
    wait "$child" || code=$?
    ((signals != before))
  do :; done
}

# Job control gives each command a process group of its own. Ctrl-C then comes
# to it once, through `tell`, and is not ignored as in plain background.
set -m
for ((restart = 1; ; restart++)); do
  SECONDS=0
  run "$@"
  [[ ! $told ]] || exit "$code"
  case $code in 0 | 2 | 126 | 127 | 129 | 130 | 138 | 143) exit "$code" ;; esac
  ((SECONDS < ${HEALTHY:-600})) || restart=1
  ((restart <= ${RESTARTS:-3})) || exit "$code"
  pause=$((restart * ${PAUSE:-10}))
  echo "exit code $code; restart $restart of ${RESTARTS:-3} in $pause s" >&2
  run sleep "$pause"
  [[ ! $told ]] || exit "$code"
done
