#!/usr/bin/env bash
# The part of launch/tpu_pod.sh that runs on every worker of a TPU VM; it is
# copied there and called over ssh, and is of no use elsewhere:
#   tpu_worker.sh stop [SECONDS]               ends what an earlier call began
#   tpu_worker.sh install COMMIT PYTHON        into ~/aced/COMMIT/.venv
#   tpu_worker.sh mount BUCKET                 at /mnt/aced
#   tpu_worker.sh run KEY COMMIT ARGUMENTS...  starts, follows, exits alike
#   tpu_worker.sh logs [--follow]              the newest log
#   tpu_worker.sh --dry-run COMMAND...         prints the command, runs nothing
# A training is not tied to the ssh connection: a second `run` of the same KEY
# follows what the first began. (gcloud itself runs a command again when the
# connection breaks.)

set -euo pipefail

base="$HOME/aced"
state="$base/state"
mount_point="${ACED_MOUNT:-/mnt/aced}"
# Workers of a slice are named ...-w-0, ...-w-1 and so on.
worker="w${HOSTNAME##*-w-}"

say() {
  printf '%s| aced: %s\n' "$worker" "$*"
}

# recorded NAME: what an earlier call wrote under that name, if anything.
recorded() {
  cat "$state/$1" 2>/dev/null || true
}

boot() {
  cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown
}

# alive: whether a process of the last training is left (dead ones that nobody
# has waited for do not count; nor does another's number after a reboot).
alive() {
  local group
  group="$(recorded group)"
  [ -n "$group" ] && [ "$(recorded boot)" = "$(boot)" ] &&
    ps -e -o pgid= -o stat= | awk -v group="$group" '
      $1 == group && $2 !~ /^Z/ { found = 1 }
      END { exit !found }'
}

# stop [SECONDS]: SIGTERM to the trainer, which saves; after SECONDS SIGKILL.
stop() {
  local patience="${1:-120}" group pid
  alive || return 0
  group="$(recorded group)" pid="$(recorded pid)"
  say "ending the training that runs here (process ${pid:-$group})"
  kill -TERM "${pid:-$group}" 2>/dev/null || true
  local end=$((SECONDS + patience))
  while alive && [ ! -e "$state/code" ] && [ "$SECONDS" -lt "$end" ]; do
    sleep 0.1
  done
  [ -e "$state/code" ] || say "it did not end in $patience s and is killed"
  kill -KILL -- "-$group" 2>/dev/null || true
  end=$((SECONDS + 10))
  while alive; do
    if [ "$SECONDS" -ge "$end" ]; then
      say "processes of group $group cannot be killed; delete the VM" >&2
      return 1
    fi
    sleep 0.1
  done
}

find_uv() {
  if command -v uv >/dev/null 2>&1; then
    command -v uv
    return
  fi
  if [ ! -x "$HOME/.local/bin/uv" ]; then
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv >&2
  fi
  echo "$HOME/.local/bin/uv"
}

# install COMMIT PYTHON: the copied archive, with the versions copied with it.
install() {
  local commit="$1" python="$2" home="$base/$1" pins="$HOME/aced-$1.txt" uv
  if cmp -s "$home/installed" "$pins"; then
    say "commit $commit is already installed"
    return
  fi
  say "installing commit $commit"
  rm -rf "$home"
  mkdir -p "$home"
  tar -xzf "$HOME/aced-$commit.tar.gz" -C "$home"
  uv="$(find_uv)"
  "$uv" venv --quiet --python "$python" "$home/.venv"
  "$uv" pip install --quiet --python "$home/.venv/bin/python" \
    --constraint "$pins" -e "${home}[tpu]"
  cp "$pins" "$home/installed"
}

# mount_bucket BUCKET: no caching of what is where, as every host must see what
# the others wrote, and folders that can be renamed, as a checkpoint is when it
# is complete.
mount_bucket() {
  local bucket="$1" there
  there="$(findmnt -n -o SOURCE "$mount_point" || true)"
  if [ "$there" = "$bucket" ]; then
    return
  elif [ -n "$there" ]; then
    say "$mount_point holds $there, not the bucket $bucket; it is unmounted"
    sudo umount "$mount_point"
  fi
  if ! command -v gcsfuse >/dev/null 2>&1 &&
    ! sudo apt-get install --quiet --yes gcsfuse >/dev/null; then
    say "there is no gcsfuse here, and apt has no such package: give" \
      "tpu_pod.sh a --setup command that installs Cloud Storage FUSE" >&2
    return 1
  fi
  sudo mkdir -p "$mount_point"
  sudo chown "$(id -un)" "$mount_point"
  gcsfuse --implicit-dirs --rename-dir-limit=100000 \
    --metadata-cache-ttl-secs=0 "$bucket" "$mount_point"
}

# child COMMIT ARGUMENTS...: the leader of the training's process group.
child() {
  cd "$base/$1"
  shift
  local code=0
  .venv/bin/python "$@" &
  echo $! >"$state/pid"
  wait $! || code=$?
  echo "$code" >"$state/code.new"
  mv "$state/code.new" "$state/code"
}

# start KEY COMMIT ARGUMENTS...: the training, which outlives this connection.
start() {
  local key="$1" log
  shift
  mkdir -p "$state" "$base/logs"
  log="$base/logs/$(date -u +%Y%m%dT%H%M%SZ).log"
  rm -f "$state/code" "$state/pid" "$state/group"
  ln -sfn "$log" "$state/log"
  boot >"$state/boot"
  echo "$key" >"$state/key"
  setsid bash "$0" child "$@" </dev/null >>"$log" 2>&1 &
  echo $! >"$state/group"
}

# follow LINES: the log until the training ends, then exits as it did.
follow() {
  local group code
  group="$(recorded group)"
  if [ -n "$group" ]; then
    tail -n "$1" -s 0.1 -f --pid="$group" "$state/log" |
      sed -u "s/^/$worker| /"
  fi
  code="$(recorded code)"
  # No code: even the leader of the group was killed, as by lack of memory.
  code="${code:-137}"
  say "exit code $code"
  return "$code"
}

run() {
  if [ "$(recorded key)" = "$1" ]; then
    say "connected again; the training went on"
    follow 20
  else
    start "$@"
    follow +1
  fi
}

logs() {
  if [ ! -e "$state/log" ]; then
    say "nothing has run here yet"
  elif [ "${1:-}" = --follow ]; then
    tail -n 100 -F "$state/log" | sed -u "s/^/$worker| /"
  else
    tail -n 100 "$state/log" | sed "s/^/$worker| /"
  fi
}

main() {
  case "${1:-}" in
    stop) stop "${@:2}" ;;
    install) install "${@:2}" ;;
    mount) mount_bucket "${@:2}" ;;
    run) run "${@:2}" ;;
    logs) logs "${@:2}" ;;
    child) child "${@:2}" ;;
    --dry-run) echo "${@:2}" ;;
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    *)
      echo "tpu_worker.sh: '${1:-}' is none of stop, install, mount, run," \
        "logs; see --help." >&2
      return 2
      ;;
  esac
}

# Read as a whole before it runs: a newer copy may replace this file meanwhile.
{
  main "$@"
  exit
}
