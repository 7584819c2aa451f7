#!/usr/bin/env bash
# Trains on a Cloud TPU VM, of one worker or many, and goes on after preemption:
#   launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE [options] -- ARGUMENTS
#   launch/tpu_pod.sh logs --name NAME --zone ZONE [--worker N] [--follow]
#   launch/tpu_pod.sh delete --name NAME --zone ZONE
# ARGUMENTS are those of python, the same on every worker:
#   launch/tpu_pod.sh --name acid --zone us-west4-a --type v5litepod-16 --spot \
#     --bucket my-bucket -- -m aced.train --config configs/acid.py \
#     --workdir /mnt/aced/runs/acid
#
#   --name NAME         the TPU VM; made where it is not there, else used again
#   --zone ZONE         where it is, such as us-west4-a
#   --type TYPE         its accelerator, such as v5litepod-16, v5p-32 or v6e-64
#   --version VERSION   its software; known for the types v2 to v6e
#   --project PROJECT   as gcloud is set up otherwise
#   --spot              a cheaper VM that can be taken away at any time
#   --bucket BUCKET     mounted at /mnt/aced on every worker
#   --commit COMMIT     the code that is copied there; HEAD otherwise
#   --allow-dirty       HEAD, although the checkout has changes: they stay here
#   --setup COMMAND     a shell command for every worker, before installing
#   --max-restarts N    how often the same command is started again (100)
#   --delete            deletes the VM at the end, unless you interrupt this
#   --worker N          whose log is shown, 0 or all (all)
#   --follow            shows what is added to the log, until Ctrl-C
#   --dry-run           prints the commands and runs none
#
# Several workers write one checkpoint, so their workdir must be one folder for
# all: one below /mnt/aced. The workers find each other by themselves. Python
# packages have the versions of the local .venv, if there is one.
#
# A training that was stopped or preempted is started again (launch/restart.sh
# says after which exit codes); a VM that was taken away is made anew. Ctrl-C
# stops the training, which saves first; the same command then goes on.
#
# Needs bash 4.4 or newer and gcloud, logged in. For several workers its ssh key
# must be in the agent: ssh-add ~/.ssh/google_compute_engine
# ACED_RESTART_PAUSE is the first pause before a restart (5 seconds; it doubles,
# up to 60), ACED_POLL that between two looks at a VM that is not ready (10).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/restart.sh

# ssh asks nothing, and notices when the other end is gone.
ssh_options=(-oBatchMode=yes -oServerAliveInterval=30 -oServerAliveCountMax=4)
mount_point=/mnt/aced
first_pause="${ACED_RESTART_PAUSE:-5}"
poll="${ACED_POLL:-10}"

say() {
  printf 'tpu_pod.sh: %s\n' "$*" >&2
}

# quoted WORDS...: as a shell reads them, quotes only where they are needed.
quoted() {
  local word text=""
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    text+="${text:+ }$word"
  done
  printf '%s\n' "$text"
}

# ---- arguments ----

action=run name="" zone="" type="" version="" project="" bucket="" commit=""
setup="" spot="" allow_dirty="" delete="" max_restarts=100 worker=all
follow="" dry_run="" command=() problems=() original=("$@")

wrong() {
  problems+=("$*")
}

parse() {
  case "${1:-}" in
    logs | delete | run)
      action="$1"
      shift
      ;;
  esac
  while [ "$#" -gt 0 ]; do
    case "$1" in
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case "$1" in
      --help | -h)
        print_header launch/tpu_pod.sh
        exit 0
        ;;
      --spot) spot=1 ;;
      --allow-dirty) allow_dirty=1 ;;
      --delete) delete=1 ;;
      --follow) follow=1 ;;
      --dry-run) dry_run=1 ;;
      --)
        command=("${@:2}")
        return
        ;;
      --name | --zone | --type | --version | --project | --bucket | --commit | \
        --setup | --max-restarts | --worker)
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
  local word
  for word in "$@"; do
    case "${word#--workdir=}" in
      gs://*)
        wrong "the workdir '${word#--workdir=}' is a bucket, which the" \
          "trainer cannot write to: give --bucket ${bucket:-BUCKET} and a workdir" \
          "below $mount_point, where it is mounted"
        ;;
    esac
  done
}

workdir_words() {
  local previous="" word
  for word in "${command[@]}"; do
    case "$previous $word" in
      "--workdir "* | *" --workdir="*) check_workdir "$word" ;;
    esac
    previous="$word"
  done
}

known_version() {
  case "$type" in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

check_run() {
  matches --type "$type" '[a-z0-9]+(-[a-z0-9]+)*' \
    "an accelerator type such as v5litepod-16"
  version="${version:-$(known_version)}"
  if [ -n "$type" ] && [ -z "$version" ]; then
    wrong "--version is missing: the software of a '$type' is not known here;" \
      "'gcloud compute tpus tpu-vm versions list --zone ZONE' lists them"
  fi
  matches --max-restarts "$max_restarts" '[0-9]+' "a number, 0 or more"
  if [ -n "$bucket" ]; then
    matches --bucket "$bucket" '[a-z0-9][a-z0-9._-]+' \
      "the name of a bucket, without gs:// and without a folder"
  fi
  if [ "${#command[@]}" -eq 0 ]; then
    wrong "the command is missing: -- -m aced.train --config C --workdir W"
  else
    workdir_words
  fi
}

check() {
  matches --name "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' \
    "a name of lower-case letters, digits and dashes for the TPU VM"
  matches --zone "$zone" '[a-z0-9-]+' "a zone such as us-west4-a"
  case "$action" in
    run) check_run ;;
    logs) matches --worker "$worker" '[0-9]+|all' "a worker's number, or all" ;;
  esac
  if [ "${#problems[@]}" -gt 0 ]; then
    local problem
    for problem in "${problems[@]}"; do
      say "$problem"
    done
    say "nothing was done; --help tells the arguments"
    exit 2
  fi
}

# What is copied is a commit, so that it can be named and had again.
check_code() {
  local changed ref="${commit:-HEAD}"
  if ! commit="$(git rev-parse --verify --quiet "$ref^{commit}")"; then
    say "'$ref' is not a commit of this checkout; give --commit another"
    exit 2
  fi
  commit="${commit:0:12}"
  [ "$ref" = HEAD ] || return 0
  changed="$(git status --porcelain)"
  if [ -n "$changed" ] && [ -z "$allow_dirty" ]; then
    say "this checkout has changes that are in no commit, and only a commit" \
      "is copied. Commit them, or leave them out with --allow-dirty:"
    printf '%s\n' "$changed" >&2
    exit 2
  fi
}

# ---- running commands ----

note() {
  if [ -n "$dry_run" ]; then
    printf '%s# %s\n' "$between" "$*"
    between=$'\n'
  fi
}

child="" signal="" training="" between=""

# attend COMMAND...: runs it beyond the reach of the terminal's Ctrl-C, which
# this script passes on in its own way.
attend() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    return 0
  fi
  [ -z "$signal" ] || interrupted
  local code=0
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  wait "$child" || code=$?
  [ -z "$signal" ] || interrupted
  return "$code"
}

tpu() {
  local verb="$1"
  shift
  gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone" \
    ${project:+--project="$project"}
}

# on_workers WORDS...: the command that runs tpu_worker.sh on every worker.
on_workers() {
  on_all "$(quoted bash tpu_worker.sh "$@")"
}

on_all() {
  attend gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" \
    ${project:+--project="$project"} --worker="$worker" --quiet \
    "${ssh_options[@]/#/--ssh-flag=}" --command="$1"
}

# interrupted: stops what runs, says how to go on, and ends this script.
interrupted() {
  local code=143 pid="$child"
  [ "$signal" = TERM ] || code=130
  trap - INT TERM
  delete="" signal=""
  if [ -n "$training" ]; then
    say "interrupted: the training is asked to save and stop"
    on_workers stop || say "it could not be stopped; it may still run there"
    wait "$pid" || true
  elif [ -n "$pid" ]; then
    kill -TERM -- "-$pid" 2>/dev/null || true
    wait "$pid" || true
  fi
  if [ "$action" = run ]; then
    say "the VM $name is kept, and costs. To go on:"
    say "  $(quoted launch/tpu_pod.sh "${original[@]}")"
    say "or to end it:"
    say "  $(delete_command)"
  fi
  exit "$code"
}

delete_command() {
  quoted launch/tpu_pod.sh delete --name "$name" --zone "$zone" \
    ${project:+--project "$project"}
}

# ---- the VM ----

# vm_state: prints the state of the VM, or ABSENT.
vm_state() {
  local log="$scratch/describe.log"
  if tpu describe "$name" --format='value(state)' 2>"$log"; then
    return
  elif grep -qiE 'not.?found' "$log"; then
    echo ABSENT
  else
    cat "$log" >&2
    return 1
  fi
}

create_vm() {
  note "The VM, where there is none or it was taken away."
  attend gcloud compute tpus tpu-vm create "$name" --zone="$zone" \
    ${project:+--project="$project"} --accelerator-type="$type" \
    --version="$version" ${spot:+--spot} --quiet
}

delete_vm() {
  attend gcloud compute tpus tpu-vm delete "$name" --zone="$zone" \
    ${project:+--project="$project"} --quiet
}

# ensure_ready: makes the VM, waits for it, or makes it anew.
ensure_ready() {
  if [ -n "$dry_run" ]; then
    note "Is the VM there?"
    quoted gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
      ${project:+--project="$project"} --format='value(state)'
    create_vm
    return
  fi
  local state tries=0
  while [ "$tries" -lt 720 ]; do
    state="$(vm_state)" || return 1
    case "$state" in
      READY) return 0 ;;
      ABSENT)
        say "creating the VM $name ($type)"
        create_vm || return 1
        ;;
      PREEMPTED | TERMINATED | SUSPENDED)
        say "the VM $name is $state; it is deleted and made anew"
        delete_vm || return 1
        ;;
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | UNHIDING | \
        DELETING | STOPPING | SUSPENDING)
        [ "$state" = "${waiting_for:-}" ] || say "waiting: $name is $state"
        local waiting_for="$state"
        attend sleep "$poll"
        ;;
      *)
        say "the VM $name is ${state:-in no state}, which ends only by hand:" \
          "start it, or delete it with: $(delete_command)"
        return 1
        ;;
    esac
    tries=$((tries + 1))
  done
  say "the VM $name did not become READY, it is $state; look at it with" \
    "gcloud compute tpus tpu-vm describe $name --zone=$zone"
  return 1
}

# ---- the code ----

freeze() {
  local words=(.venv/bin/python -m pip freeze)
  if command -v uv >/dev/null 2>&1; then
    words=(uv pip freeze --python .venv/bin/python)
  fi
  "${words[@]}" | { grep -Ev '^(-e|#|aced==)| @ |\+cpu|-cpu==' || true; }
}

# pack: the archive of the commit and the versions to install with it.
pack() {
  note "The code, and the versions of the packages that are installed here."
  attend git archive --format=tar.gz \
    --output="$scratch/aced-$commit.tar.gz" "$commit"
  local pins="$scratch/aced-$commit.txt"
  if [ -n "$dry_run" ]; then
    echo "pip freeze >$(quoted "$pins")  # of .venv, without aced itself"
  elif [ -x .venv/bin/python ]; then
    freeze >"$pins"
  else
    say "there is no .venv here: the newest packages are installed there"
    : >"$pins"
  fi
}

local_python() {
  if [ -n "$dry_run" ] || [ ! -x .venv/bin/python ]; then
    echo 3.11
  else
    .venv/bin/python -c \
      'import sys; print("%d.%d" % sys.version_info[:2])'
  fi
}

# prepare: everything that a VM needs before the training, done or found done.
prepare() {
  note "Onto every worker; what is installed there is not installed again."
  attend gcloud compute tpus tpu-vm scp launch/tpu_worker.sh \
    "$scratch/aced-$commit.tar.gz" "$scratch/aced-$commit.txt" "$name:" \
    --zone="$zone" ${project:+--project="$project"} --worker=all --quiet \
    "${ssh_options[@]/#/--scp-flag=}" || return
  note "What may be left of an earlier training ends, and saves."
  on_workers stop || return
  if [ -n "$setup" ]; then
    on_all "$setup" || return
  fi
  on_workers install "$commit" "$python" || return
  if [ -n "$bucket" ]; then
    on_workers mount "$bucket" || return
  fi
}

# ---- the training ----

# relay: passes lines on and keeps the exit code that each worker tells.
relay() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '%s\n' "$line"
    case "$line" in
      *"| aced: exit code "*) echo "${line##* }" >>"$scratch/codes" ;;
    esac
  done
}

relayed() {
  "$@" 2>&1 | relay
}

# train: runs the command on every worker. gcloud returns the code of the first
# that failed; one that says "do not start again" must count before the others.
train() {
  local code=0 told
  if [ -n "$dry_run" ]; then
    note "The training; again after exit code 75, a signal or a preemption."
    on_workers run KEY "$commit" "${command[@]}"
    return 0
  fi
  : >"$scratch/codes"
  training=1
  attend relayed gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" \
    ${project:+--project="$project"} --worker=all --quiet \
    "${ssh_options[@]/#/--ssh-flag=}" --command="$(
      quoted bash tpu_worker.sh run "$key-$restarts" "$commit" "${command[@]}"
    )" || code=$?
  training=""
  while read -r told; do
    if [ "$told" -ne 0 ] && ! goes_on "$told"; then
      code="$told"
    fi
  done <"$scratch/codes"
  return "$code"
}

# once: one try; sets code, and reached to how far it came.
once() {
  code=0 reached=vm
  ensure_ready || { code=$? && return; }
  used=1 reached=preparation
  prepare || { code=$? && return; }
  reached=training trained=1
  train || code=$?
}

# another_try: whether the same command is to be started again.
another_try() {
  if [ "$code" -eq 0 ] || [ "$code" -eq 130 ]; then
    return 1
  elif [ "$reached" != training ] && [ -n "$trained" ]; then
    return 0 # A VM that ran can be made ready again, if not at once.
  elif [ "$reached" = vm ]; then
    return 1
  elif [ "$reached" = training ] && goes_on "$code"; then
    return 0
  fi
  local state
  state="$(vm_state)" && [ "$state" != READY ]
}

explain() {
  case "$reached" in
    vm) say "the VM $name could not be had" ;;
    preparation) say "the workers could not be prepared (exit code $code)" ;;
    training) say "the training ended with exit code $code" ;;
  esac
}

train_to_the_end() {
  local pause="$first_pause" began
  while :; do
    began="$SECONDS"
    once
    [ -z "$signal" ] || interrupted
    if [ "$code" -eq 0 ]; then
      [ -n "$dry_run" ] || say "finished"
      return 0
    fi
    explain
    if ! another_try; then
      say "another try would not help; not started again"
      return "$code"
    elif [ "$restarts" -ge "$max_restarts" ]; then
      say "it was started again $restarts times, as often as --max-restarts" \
        "allows; the same command goes on"
      return "$code"
    fi
    restarts=$((restarts + 1))
    [ $((SECONDS - began)) -lt 600 ] || pause="$first_pause"
    say "restart $restarts of at most $max_restarts, in $pause s"
    attend sleep "$pause"
    pause=$((pause * 2 > 60 ? 60 : pause * 2))
  done
}

# leave: on every way out, with the exit code kept.
leave() {
  local code=$?
  trap - EXIT
  if [ -n "$delete" ] && [ -n "$used" ]; then
    note "At the end, also after a failure; not after Ctrl-C."
    [ -n "$dry_run" ] || say "deleting the VM $name"
    if ! delete_vm; then
      say "the VM $name could not be deleted, and costs; try again with:" \
        "$(delete_command)"
      [ "$code" -ne 0 ] || code=1
    fi
  fi
  [ -n "$dry_run" ] || rm -rf "$scratch"
  exit "$code"
}

parse "$@"
check
if [ "$action" = run ]; then
  check_code
fi
if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null 2>&1; then
  say "gcloud is not on the PATH: install the Google Cloud CLI, log in with" \
    "'gcloud auth login', and call this again"
  exit 2
fi
trap 'signal=INT' INT
trap 'signal=TERM' TERM

case "$action" in
  delete) delete_vm ;;
  logs) on_workers logs ${follow:+--follow} ;;
  run)
    worker=all used="" trained="" restarts=0
    key="$(date +%s)-$$"
    scratch="${TMPDIR:-/tmp}/aced-$name"
    [ -n "$dry_run" ] || scratch="$(mktemp -d)"
    python="$(local_python)"
    trap leave EXIT
    pack
    train_to_the_end
    ;;
esac
