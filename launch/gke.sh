#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet, through kubectl.
#
#   gke.sh apply --name=NAME --image=IMAGE --tpu=tpu-v5-lite-podslice \
#     --topology=4x4 --claim=CLAIM [options] \
#     -- --config=FILE.py --workdir=FOLDER [flags]
#
# apply   starts the training: jobset.yaml, filled in
# status  the JobSet and its pods
# logs    what process 0 says
# delete  ends the training: it saves first; `apply` again resumes it
#
# --name=NAME           of the JobSet
# --image=IMAGE         built from Containerfile with PLATFORM=tpu
# --tpu=TYPE            nodes' label cloud.google.com/gke-tpu-accelerator
# --topology=AxB[xC]    of one slice, in chips: the label ...gke-tpu-topology
# --chips-per-host=4    google.com/tpu of a node
# --slices=1            how many slices train together
# --claim=CLAIM         a persistent volume claim that all pods may write to
# --mount=/shared       where the training sees it: data and work directory
# --spot                on spot nodes
# --max-restarts=20     of all pods, after crashes and preemptions
# --namespace=NAMESPACE default: kubectl's own
# --dry-run             prints the JobSet and the commands
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

choose 'apply status logs delete' "$@"
shift
name='' image='' tpu='' topology='' claim='' spot='' namespace=''
chips_per_host=4 slices=1 mount=/shared max_restarts=20
options "name= image= tpu= topology= chips-per-host= slices= claim= mount= \
  spot max-restarts= namespace=" "$@"
set -- "${rest[@]}"
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "--name=$name: expected a-z, 0-9 and -, at most 40"
need kubectl "see https://kubernetes.io/docs/tasks/tools"
kubectl=(kubectl)
[[ ! $namespace ]] || kubectl+=("--namespace=$namespace")

# A string of JSON, which is one of YAML, too.
json() { # TEXT
  local text=$1
  [[ $text != *[[:cntrl:]]* ]] || fail "a control character in ${text@Q}"
  text=${text//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

fill() { # NAME VALUE
  text=${text//"\${$1}"/"$2"}
}

jobset() { # FLAGS...
  local text args='' word sides side total=1
  for word in "$@"; do
    word=${word//"\$("/"\$\$("} # or Kubernetes would look for a variable
    args+="${args:+, }$(json "$word")"
  done
  IFS=x read -r -a sides <<<"$topology"
  for side in "${sides[@]}"; do
    total=$((total * side))
  done
  ((total % chips_per_host == 0)) ||
    fail "--topology=$topology is $total chips, --chips-per-host=$chips_per_host"
  # A pod that trains alone has nobody to look for.
  ((total * slices > chips_per_host)) || args+=', "--num_processes=1"'
  text=$(grep -v '^#' "$here/jobset.yaml")
  [[ $spot ]] || text=$(grep -v 'only with --spot' <<<"$text")
  fill NAME "$name"
  fill MAX_RESTARTS "$max_restarts"
  fill SLICES "$slices"
  fill HOSTS "$((total / chips_per_host))"
  fill CHIPS "$chips_per_host"
  fill TPU "$(json "$tpu")"
  fill TOPOLOGY "$(json "$topology")"
  fill IMAGE "$(json "$image")"
  fill CLAIM "$(json "$claim")"
  fill MOUNT "$(json "$mount")"
  fill ARGS "[$args]" # last: flags may contain anything
  printf '%s\n' "$text"
}

apply() {
  local text option
  check_flags "$@"
  for option in image tpu topology claim; do
    [[ ${!option} ]] || fail "no $option: give one with --$option=..."
  done
  [[ $topology =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] ||
    fail "--topology=$topology: expected AxB or AxBxC, such as 4x4"
  whole_number --chips-per-host "$chips_per_host" 1
  whole_number --slices "$slices" 1
  whole_number --max-restarts "$max_restarts" 0
  text=$(jobset "$@")
  if [[ $dry_run ]]; then
    printf '%s <<"YAML"\n%s\nYAML\n' \
      "$(quoted "${kubectl[@]}" apply --filename=-)" "$text"
  else
    "${kubectl[@]}" apply --filename=- <<<"$text"
  fi
}

[[ $action == apply ]] || (($# == 0)) ||
  fail "flags of the training belong to apply"
mine=jobset.sigs.k8s.io/jobset-name=$name
case $action in
  apply) apply "$@" ;;
  status)
    run "${kubectl[@]}" get jobset "$name"
    run "${kubectl[@]}" get pods "--selector=$mine" --output=wide
    ;;
  logs)
    run "${kubectl[@]}" logs --follow --tail=-1 \
      "--selector=$mine,jobset.sigs.k8s.io/job-index=0,\
batch.kubernetes.io/job-completion-index=0"
    ;;
  delete) run "${kubectl[@]}" delete jobset "$name" ;;
esac
