# shellcheck shell=bash
# What the scripts beside it share; sourced, not run.

dry_run=${DRY_RUN:-}
[[ $dry_run != 0 ]] || dry_run=

# One clear line, and the code of a mistake that no restart mends.
fail() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

say() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# The comment at the head of the script is its help.
usage() {
  sed -n '2,${/^# \{0,1\}/!q; /^#SBATCH/q; s/^# \{0,1\}//p;}' "$0"
  exit 0
}

# Sets `action` to the first word.
choose() { # "ACTION ..." WORDS...
  [[ ${2:-} != -h && ${2:-} != --help ]] || usage
  action=${2:-}
  [[ $action && " $1 " == *" $action "* ]] ||
    fail "expected one of ${1// /, } first, not '$action'"
}

# Sets variables: `max_restarts` from --max-restarts=3, `spot` to 1 from --spot.
# Words after -- go into `rest`.
options() { # "NAME= SWITCH ..." WORDS...
  local known=" $1 dry-run " word option
  shift
  rest=()
  while (($#)); do
    word=$1 option=${1%%=*}
    shift
    case $word in
      -h | --help) usage ;;
      --)
        # shellcheck disable=SC2034
        rest=("$@")
        return
        ;;
      *=*) option+='=' ;;
    esac
    [[ $option =~ ^--[a-z-]+=?$ && $known == *" ${option#--} "* ]] ||
      fail "unexpected argument $word; flags of the training, or the command," \
        "come after --"
    option=${option#--} option=${option//-/_}
    case $option in
      *=) printf -v "${option%=}" '%s' "${word#*=}" ;;
      *) printf -v "$option" 1 ;;
    esac
  done
}

need() { # TOOL HINT
  [[ $dry_run ]] || command -v "$1" >/dev/null ||
    fail "$1 is not installed here: $2"
}

whole_number() { # NAME VALUE MINIMUM
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ && $2 -ge $3 ]] ||
    fail "$1=$2: expected a whole number of at least $3"
}

# A command as one line that a shell reads back as the same words.
quoted() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s' "${line# }"
}

run() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# In a dry run: what comes of the command above, or if something happens.
later() { # WHEN COMMAND...
  printf '# %s: %s\n' "$1" "$(quoted "${@:2}")"
}

# As `run`, in place of this script, so that signals come to the command.
become() {
  [[ $dry_run ]] || exec "$@"
  run "$@"
}

# The flags of the training have to name a config and a work directory.
check_flags() {
  local word config='' workdir=''
  for word in "$@"; do
    case $word in
      --config | --config=?*) config=1 ;;
      --workdir | --workdir=?*) workdir=1 ;;
    esac
  done
  [[ $config && $workdir ]] ||
    fail "expected -- --config=FILE.py --workdir=FOLDER [flags] at the end"
}

# Sets `python`: $PYTHON, else the repository's environment, else python3.
find_python() { # REPOSITORY
  python=${PYTHON:-$1/.venv/bin/python}
  [[ ${PYTHON:-} || -x $python ]] || python=python3
  need "$python" "run make setup, or set PYTHON"
}

# Waits for a child and sets `code`. A caught signal ends `wait` early: its trap
# counts up `signals`, and the child is waited for once more.
signals=0
await() { # PID
  local before=$signals again
  code=0
  wait "$1" || code=$?
  while ((signals != before)); do
    before=$signals again=0
    wait "$1" || again=$?
    # shellcheck disable=SC2034  # 127: it was waited for already
    ((again == 127)) || code=$again
  done
}
