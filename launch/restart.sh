# shellcheck shell=bash
# Sourced by the launchers: which exit codes of a training mean "go on", and
# what the launchers say of their arguments.
#
#   . launch/restart.sh
#   if goes_on "$code"; then echo "the same command is started again"; fi
#
#   0                 finished
#   75                stopped and saved, or another host was lost: go on
#   128 and above     killed by a signal (137: SIGKILL, as without memory)
#   130               interrupted from the keyboard: stay stopped
#   anything else     wrong input, diverged, usage: another try would not help

# goes_on CODE: succeeds when the same command is to be started again.
goes_on() {
  case "${1:-}" in
    '' | *[!0-9]*)
      echo "goes_on: exit code '${1:-}' is not a number from 0 to 255." >&2
      return 2
      ;;
  esac
  [ "$1" -eq 75 ] || { [ "$1" -ge 128 ] && [ "$1" -ne 130 ]; }
}

# print_header FILE: prints the comment at the top of a script.
print_header() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
}

# matches FLAG VALUE PATTERN WHAT: a missing value is named, and a wrong one, by
# the caller's function `wrong`.
matches() {
  if [ -z "$2" ]; then
    wrong "$1 is missing: $4"
  elif [[ ! "$2" =~ ^($3)$ ]]; then
    wrong "$1 is '$2'; expected $4"
  fi
}
