#!/usr/bin/env bash
# Runs one command as N processes of one run, all on this machine:
#
#   launch/local_hosts.sh N [--devices D] [--port P] [--max-restarts R]
#     [--dry-run] -- -m aced.train --config configs/acid.py:demo --workdir DIR
#
#   --devices D       CPU devices of each process
#   --port P          port of the coordinator (else a free one, new at each try)
#   --max-restarts R  starts all again while their exit code says so (0)
#   --dry-run         prints the commands and starts nothing
#
# What follows `--` is given to Python: that of .venv where it is there, else
# python3; PYTHON names another. It runs in the checkout. The processes know of
# each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
# and compute on the CPU unless JAX_PLATFORMS says otherwise.
#
# SIGTERM and SIGINT are passed on to every process, and nothing is started
# again after them. When one process fails, the others have ACED_PEER_SECONDS
# (150) to end by themselves, then ACED_KILL_SECONDS (30) after a SIGTERM, and
# are killed after that. The exit code is 0 when all are; else that of the first
# to fail, where a code that forbids a restart goes before others.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/restart.sh

# wrong MESSAGE...: says what is wrong with the command line, and ends.
wrong() {
  echo "local_hosts.sh: $*" >&2
  exit 2
}

# whole NAME VALUE LEAST: ends unless VALUE is a whole number of LEAST or more.
whole() {
  if ! [[ "$2" =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3)); then
    wrong "$1 is '$2', expected a whole number of at least $3."
  fi
}

# parse ARGUMENTS: sets count, devices, port, restarts, dry_run and arguments.
parse() {
  devices='' port='' restarts=0 dry_run=''
  if [ "${1:-}" = --help ]; then
    print_header launch/local_hosts.sh
    exit 0
  fi
  if (($# == 0)); then
    wrong "the number of processes is missing:" \
      "local_hosts.sh N -- -m aced.train ..."
  fi
  whole "the number of processes" "$1" 1
  count=$((10#$1))
  shift
  while (($# > 0)) && [ "$1" != -- ]; do
    case "$1" in
      --devices | --port | --max-restarts)
        (($# > 1)) || wrong "$1 lacks its value."
        ;;&
      --devices) whole "$1" "$2" 1 && devices=$((10#$2)) && shift ;;
      --port) whole "$1" "$2" 1 && port=$((10#$2)) && shift ;;
      --max-restarts) whole "$1" "$2" 0 && restarts=$((10#$2)) && shift ;;
      --dry-run) dry_run=yes ;;
      *) wrong "unknown argument '$1'; the command of Python follows '--'." ;;
    esac
    shift
  done
  if [ -n "$port" ] && ((port > 65535)); then
    wrong "--port is '$port', expected a whole number of at most 65535."
  fi
  (($# > 1)) || wrong "no command: add '-- -m aced.train ...' at the end."
  shift
  arguments=("$@")
}

# find_python: sets python.
find_python() {
  python="${PYTHON:-}"
  if [ -z "$python" ]; then
    python=python3
    [ ! -x .venv/bin/python ] || python=.venv/bin/python
  fi
  if ! command -v "$python" >/dev/null; then
    wrong "no Python at '$python'; set PYTHON to one or make .venv."
  fi
}

# environment I PORT: sets settings, what the environment of process I adds.
environment() {
  settings=(
    "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}"
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$2"
    "JAX_NUM_PROCESSES=$count"
    "JAX_PROCESS_ID=$1"
  )
  [ -z "$devices" ] || settings+=("JAX_NUM_CPU_DEVICES=$devices")
}

# prefix I: copies standard input to standard output, each line after `[I] `.
prefix() {
  # Signals from the keyboard reach it too; it goes on until its input ends.
  trap '' INT TERM
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

free_port() {
  "$python" -c 'import socket
with socket.socket() as s:
  s.bind(("", 0))
  print(s.getsockname()[1])'
}

# start PORT: starts all processes; sets pids and readers.
start() {
  local i both in out
  pids=() readers=()
  for ((i = 0; i < count; i++)); do
    environment "$i" "$1"
    # Opened for both at first: either alone would wait for the other.
    mkfifo "$scratch/$i"
    exec {both}<>"$scratch/$i"
    exec {in}<"$scratch/$i"
    exec {out}>"$scratch/$i"
    rm "$scratch/$i"
    exec {both}>&-
    prefix "$i" <&"$in" {in}<&- {out}>&- &
    readers+=("$!")
    # A process group of its own: the keyboard's SIGINT comes to it once, from
    # here, and is not ignored, as it is by what a script starts behind itself.
    set -m
    env "${settings[@]}" "$python" "${arguments[@]}" \
      </dev/null >&"$out" 2>&1 {in}<&- {out}>&- &
    pids+=("$!")
    set +m
    exec {in}<&- {out}>&-
  done
}

# pass_on SIGNAL...: sends each to every process that still runs.
pass_on() {
  local pid signal
  for signal in "$@"; do
    for pid in "${pids[@]}"; do
      [ -n "${codes[$pid]:-}" ] || kill -s "$signal" "$pid" 2>/dev/null || true
    done
  done
}

# kill_groups: kills every process and what they started.
kill_groups() {
  local pid
  for pid in "${pids[@]}"; do
    kill -s KILL -- "-$pid" 2>/dev/null || true
  done
}

# collect: takes the exit codes of those that ended; sets running and code.
collect() {
  local i pid
  running=0
  for ((i = 0; i < count; i++)); do
    pid="${pids[i]}"
    [ -z "${codes[$pid]:-}" ] || continue
    if kill -0 "$pid" 2>/dev/null; then
      running=$((running + 1))
      continue
    fi
    codes[$pid]=0
    wait "$pid" || codes[$pid]=$?
    fold "$i" "${codes[$pid]}"
  done
}

# fold I CODE: takes the exit code of process I into code, that of the whole.
fold() {
  (($2 != 0)) || return 0
  echo "local_hosts.sh: process $1 of $count ended with exit code $2" >&2
  if ((code == 0)) || { goes_on "$code" && ! goes_on "$2"; }; then
    code="$2"
  fi
}

# stop_peers: tells those that go on though another failed to stop; kills them.
stop_peers() {
  : "${failed:=$SECONDS}"
  local late=$((SECONDS - failed - peer_seconds))
  if ((late >= kill_seconds)); then
    kill_groups
  elif ((late >= 0)) && [ -z "$told" ]; then
    told=yes
    echo "local_hosts.sh: stopping $running that go on without the others" >&2
    pass_on TERM
  fi
}

# run_once PORT: runs all processes to their end; sets code.
run_once() {
  local failed='' told='' signals
  codes=() code=0
  start "$1"
  while collect && ((running > 0)); do
    # Signals that came while processes were started are passed on too.
    signals=("${received[@]}")
    received=()
    pass_on "${signals[@]}"
    ((code == 0)) || stop_peers
    sleep 0.1 || true
  done
  kill_groups
  wait "${readers[@]}" || true
}

# show: prints the commands.
show() {
  local i
  for ((i = 0; i < count; i++)); do
    environment "$i" "${port:-PORT}"
    printf '[%s] env' "$i"
    printf ' %q' "${settings[@]}" "$python" "${arguments[@]}"
    echo
  done
}

# main ARGUMENTS
main() {
  parse "$@"
  find_python
  peer_seconds="${ACED_PEER_SECONDS:-150}"
  kill_seconds="${ACED_KILL_SECONDS:-30}"
  whole ACED_PEER_SECONDS "$peer_seconds" 0
  whole ACED_KILL_SECONDS "$kill_seconds" 0
  if [ -n "$dry_run" ]; then
    show
    return
  fi
  local tries=0 chosen stopped=''
  pids=() received=()
  declare -gA codes=()
  scratch="$(mktemp -d)"
  trap 'kill_groups; rm -rf "$scratch"' EXIT
  trap 'stopped=yes; received+=(TERM)' TERM
  trap 'stopped=yes; received+=(INT)' INT
  while true; do
    chosen="${port:-$(free_port)}"
    run_once "$chosen"
    if [ -n "$stopped" ] || ((tries >= restarts)) || ! goes_on "$code"; then
      exit "$code"
    fi
    tries=$((tries + 1))
    echo "local_hosts.sh: exit code $code; starting again" \
      "($tries of $restarts)" >&2
  done
}

main "$@"
