# Sourced by the other scripts: makes .venv in the checkout and installs into it.
#
#   . launch/venv.sh
#   install_extras test
#
# The variable venv names another environment; PYTHON chooses the interpreter,
# 3.11 or newer. uv is used where it is there.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv

# The first of these that is 3.11 or newer and can make a virtual environment.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "aced needs Python 3.11 or newer; set PYTHON to one." >&2
  return 1
}

# check_extras EXTRAS: fails unless what they name is installed. pip only warns
# of an extra that it does not know.
check_extras() {
  "$venv/bin/python" -P - "$1" <<'PYTHON'
import re
import sys
from importlib import metadata

try:
  from packaging.requirements import Requirement
except ImportError:
  from pip._vendor.packaging.requirements import Requirement


def plain(name):
  return re.sub(r"[-_.]+", "-", name).lower()


wrong = []
known = {plain(n) for n in metadata.metadata("aced").get_all("Provides-Extra")}
extras = [plain(name) for name in sys.argv[1].split(",")]
wrong += [f"aced has no extra {name!r}" for name in extras if name not in known]
for line in metadata.requires("aced"):
  need = Requirement(line)
  if need.marker:
    given = [{"extra": name} for name in ("", *extras)]
    if not any(need.marker.evaluate(one) for one in given):
      continue
  try:
    found = metadata.version(need.name)
  except metadata.PackageNotFoundError:
    found = None
  if found is None or not need.specifier.contains(found, prereleases=True):
    wrong.append(f"{need.name}{need.specifier}: found {found}")
if wrong:
  sys.exit("the installation is not whole: " + "; ".join(wrong))
import aced
PYTHON
}

# install_extras EXTRAS: installs this checkout with the named extras.
install_extras() {
  local stamp="$venv/installed-$1" python
  if [ ! -x "$venv/bin/python" ]; then
    python="$(find_python)"
    echo "making $venv with $("$python" --version)"
    if command -v uv >/dev/null 2>&1; then
      uv venv --quiet --seed --python "$python" "$venv"
    else
      "$python" -m venv "$venv"
    fi
  fi
  # Again only when the definition of the package has changed.
  if [ -e "$stamp" ] && [ "$stamp" -nt setup.py ]; then
    return
  fi
  echo "installing aced[$1] into $venv"
  if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" -e ".[$1]"
  else
    "$venv/bin/python" -m ensurepip --upgrade >/dev/null 2>&1 || true
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      -e ".[$1]"
  fi
  check_extras "$1"  # Or the stamp would keep what is broken.
  touch "$stamp"
}
