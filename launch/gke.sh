#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as the JobSet of launch/gke.yaml:
#   launch/gke.sh --name NAME --image IMAGE --accelerator ACCELERATOR \
#     --topology TOPOLOGY --hosts N --chips-per-host N --bucket BUCKET \
#     [options] -- ARGUMENTS
# ARGUMENTS are those of python in the image, the same on every host:
#   launch/gke.sh --name acid --image REPOSITORY/aced:1 \
#     --accelerator tpu-v5-lite-podslice --topology 4x4 --hosts 4 \
#     --chips-per-host 4 --bucket my-bucket \
#     -- -m aced.train --config configs/acid.py --workdir /mnt/aced/runs/acid
#
#   --name NAME            of the JobSet, and of its network
#   --image IMAGE          a container image with aced and the extra `tpu`
#   --accelerator NAME     the node label, such as tpu-v5-lite-podslice
#   --topology TOPOLOGY    the node label, such as 4x4
#   --hosts N              the nodes of the slice
#   --chips-per-host N     the TPU chips of a node; hosts times chips must be
#                          the chips of the topology
#   --bucket BUCKET        mounted at /mnt/aced, where the workdir must be
#   --spot                 on Spot nodes only
#   --service-account NAME the Kubernetes service account (default)
#   --namespace NAMESPACE  kubectl's otherwise
#   --max-restarts N       how often all hosts are started again (100)
#   --dry-run              prints the JobSet and applies nothing
#
# Which exit codes start all hosts again is said in launch/restart.sh. Needs
# bash 4.4 or newer, and kubectl with the cluster as its context.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/restart.sh

name="" image="" accelerator="" topology="" hosts="" chips_per_host=""
bucket="" spot="" service_account=default namespace="" max_restarts=100
dry_run="" command=() problems=()

say() {
  printf 'gke.sh: %s\n' "$*" >&2
}

wrong() {
  problems+=("$*")
}

parse() {
  while [ "$#" -gt 0 ]; do
    case "$1" in
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case "$1" in
      --help | -h)
        print_header launch/gke.sh
        exit 0
        ;;
      --spot) spot=1 ;;
      --dry-run) dry_run=1 ;;
      --)
        command=("${@:2}")
        return
        ;;
      --name | --image | --accelerator | --topology | --hosts | \
        --chips-per-host | --bucket | --service-account | --namespace | \
        --max-restarts)
        if [ "$#" -lt 2 ] || [ "$2" = -- ]; then
          wrong "$1 is the last word; it needs a value"
        else
          local variable="${1#--}"
          printf -v "${variable//-/_}" %s "$2"
          shift
        fi
        ;;
      *) wrong "'$1' is not known here; python's arguments come after --" ;;
    esac
    shift
  done
}

check_workdir() {
  local previous="" word
  for word in "$@"; do
    case "$previous $word" in
      "--workdir gs://"* | *" --workdir=gs://"*)
        wrong "the workdir '${word#--workdir=}' is a bucket, which the" \
          "trainer cannot write to: give one below /mnt/aced, where --bucket" \
          "is mounted"
        ;;
    esac
    previous="$word"
  done
}

check_chips() {
  local product=1 side
  for side in ${topology//x/ }; do
    product=$((product * side))
  done
  if [ "$product" -ne $((hosts * chips_per_host)) ]; then
    wrong "the topology $topology has $product chips, but --hosts $hosts" \
      "times --chips-per-host $chips_per_host is $((hosts * chips_per_host))"
  fi
}

check() {
  local label='[a-z0-9]([-a-z0-9]*[a-z0-9])?' count='[1-9][0-9]{0,5}'
  # The patterns allow nothing that means something in YAML or in the template.
  # Pods are named NAME-train-0-HOST-abcde, in 63 letters.
  matches --name "$name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
    "at most 40 lower-case letters, digits and dashes, a letter first"
  matches --image "$image" '[A-Za-z0-9][A-Za-z0-9_./:@-]*' \
    "a container image such as REPOSITORY/aced:1"
  matches --accelerator "$accelerator" "$label" \
    "a node label such as tpu-v5-lite-podslice"
  matches --topology "$topology" "$count(x$count){1,2}" "such as 4x4 or 2x2x4"
  matches --hosts "$hosts" "$count" "the number of nodes of the slice"
  matches --chips-per-host "$chips_per_host" "$count" "the TPU chips of a node"
  matches --bucket "$bucket" '[a-z0-9][a-z0-9._-]+' \
    "the name of a bucket, without gs:// and without a folder"
  matches --service-account "$service_account" "$label" \
    "the name of a Kubernetes service account"
  [ -z "$namespace" ] ||
    matches --namespace "$namespace" "$label" "the name of a namespace"
  matches --max-restarts "$max_restarts" "[0-9]{1,6}" "a number, 0 or more"
  if [ "${#command[@]}" -eq 0 ]; then
    wrong "the command is missing: -- -m aced.train --config C --workdir W"
  else
    check_workdir "${command[@]}"
  fi
  [ "${#problems[@]}" -gt 0 ] || check_chips
  if [ "${#problems[@]}" -gt 0 ]; then
    local problem
    for problem in "${problems[@]}"; do
      say "$problem"
    done
    say "nothing was applied; --help tells the arguments"
    exit 2
  fi
}

# json WORD: a JSON string that is also one in YAML, where some characters
# beyond ASCII end a line and others are not allowed as they are.
json() {
  local text="$1" i from to
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  for i in {1..31} 127 {128..159} 8232 8233 65279 65534 65535; do
    # Written as bytes, as the locale may not be one of UTF-8.
    if [ "$i" -lt 128 ]; then
      printf -v from '\\x%02x' "$i"
    elif [ "$i" -lt 2048 ]; then
      printf -v from '\\x%02x\\x%02x' $((192 + i / 64)) $((128 + i % 64))
    else
      printf -v from '\\x%02x\\x%02x\\x%02x' $((224 + i / 4096)) \
        $((128 + i / 64 % 64)) $((128 + i % 64))
    fi
    printf -v from '%b' "$from"
    printf -v to '\\u%04x' "$i"
    text="${text//"$from"/"$to"}"
  done
  printf '"%s"' "$text"
}

# arguments WORDS...: an item a line. Kubernetes puts variables in the place of
# $(NAME); two dollar signs are one that it leaves alone.
arguments() {
  local word
  for word in "$@"; do
    printf '\n%20s- %s' "" "$(json "${word//\$/\$\$}")"
  done
}

# codes: those of launch/restart.sh, ten a line.
codes() {
  local code text="" number=0 gap
  for code in {1..255}; do
    if goes_on "$code"; then
      gap=" "
      [ $((number % 10)) -ne 0 ] || printf -v gap '\n%20s' ""
      text+="${text:+,}$gap$code"
      number=$((number + 1))
    fi
  done
  printf '[%s\n%18s]' "$text" ""
}

# fill: the template with everything in its place, python's words last.
fill() {
  local text word value chosen="from any node of this kind"
  [ -z "$spot" ] || chosen='cloud.google.com/gke-spot: "true"'
  # What is said about the template itself is left out.
  text="$(sed -n '/^apiVersion/,$p' launch/gke.yaml)"
  if [ -n "$spot" ]; then
    text="${text//"# \${SPOT}"/"$chosen"}"
  else
    text="${text//"\${SPOT}"/"$chosen"}"
  fi
  for word in NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS_PER_HOST BUCKET \
    SERVICE_ACCOUNT MAX_RESTARTS; do
    local variable="${word,,}"
    value="${!variable}"
    text="${text//"\${$word}"/"$value"}"
  done
  text="${text//"\${GOES_ON}"/"$(codes)"}"
  printf '%s\n' "${text//" \${ARGUMENTS}"/"$(arguments "${command[@]}")"}"
}

parse "$@"
check
manifest="$(fill)"
if [ -n "$dry_run" ]; then
  printf '%s\n' "$manifest"
  exit 0
fi
if ! command -v kubectl >/dev/null 2>&1; then
  say "kubectl is not on the PATH: install it and choose the cluster, or pass" \
    "the output of --dry-run to one that has it"
  exit 2
fi
in_namespace=(${namespace:+--namespace="$namespace"})
printf '%s\n' "$manifest" |
  kubectl apply ${in_namespace[@]+"${in_namespace[@]}"} --filename=-
say "logs:   kubectl logs ${in_namespace[*]-} --follow --prefix" \
  "--max-log-requests=$hosts --container=train" \
  "--selector=jobset.sigs.k8s.io/jobset-name=$name"
say "state:  kubectl get jobset ${in_namespace[*]-} $name"
say "delete: kubectl delete jobset ${in_namespace[*]-} $name"
