#!/usr/bin/env bash
# What tpu_vm.sh runs on each host: trains in the background, shows the output,
# and ends with the training's exit code.
#
#   launch/tpu_host.sh --config=FILE.py --workdir=FOLDER [flags]
#
# Where a training is running, none is started: its output is shown instead. So
# it can be called again after a connection was lost. The output is in run.log.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# The training inherits this lock, and so keeps it for as long as it runs.
exec 9>>run.lock
if flock --nonblock 9; then
  rm -f run.code
  : >run.log
  (
    trap '' HUP # of a connection that ends
    launch/supervise.sh .venv/bin/python -m astjax.main "$@"
    echo "$?" >run.code
  ) >>run.log 2>&1 </dev/null &
  echo "$!" >run.pid
fi
exec 9>&-

tail --lines=+1 --follow --pid="$(<run.pid)" run.log
exit "$(cat run.code 2>/dev/null || echo 1)" # none if it was killed
