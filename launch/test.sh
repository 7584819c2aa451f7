#!/usr/bin/env bash
# Runs the test suite and the linter:
#   launch/test.sh [--tpu | --parity | --beam | --browser | --big-vision PATH |
#     --faults] [pytest arguments]
# Makes .venv and installs what the tests need where that is not there yet.
# --tpu installs the TPU compiler too, which the tests marked `tpu` need; no TPU
# is used. `launch/test.sh --tpu -m tpu` runs them alone.
# --parity installs torch, transformers, open_clip and onnxruntime, against which
# those marked `parity` compare.
# --beam installs Apache Beam, which those marked `beam` need, in an environment
# of its own, .venv-beam: it wants older packages than the rest.
# --browser runs those marked `browser`, of pages in Chromium; as root on Debian
# it installs that.
# --big-vision runs the tests marked `big_vision` against a clone of big_vision
# in PATH, with TensorFlow, in an environment of its own, .venv-bv.
# --faults runs tests/faults as often as docs/operations.md claims, most of an
# hour, and the jobs of SLURM for real; as root on Debian it installs SLURM,
# which nothing else here does.
# A form fails where none of the tests that it is for ran, all being skipped.

from="$PWD"
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
extras=test
form=
case "${1:-}" in
  --tpu)
    extras="test,tpu"
    form=tpu
    shift
    ;;
  --parity)
    extras="test,parity"
    form=parity
    shift
    ;;
  --beam)
    extras="test,beam"
    venv=.venv-beam
    form=beam
    shift
    ;;
  --browser)
    extras="test,browser"
    form=browser
    shift
    set -- -m browser "$@"
    if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] &&
      command -v apt-get >/dev/null; then
      apt-get install -y -qq chromium >/dev/null || true  # Or tests say so.
    fi
    ;;
  --big-vision)
    clone="$(cd "$from" && cd "${2:-}" 2>/dev/null && pwd)" || clone="${2:-}"
    if [ -z "${2:-}" ] || [ ! -f "$clone/big_vision/utils.py" ]; then
      echo "--big-vision '${2:-}': it has no folder big_vision with utils.py; give" \
        "the folder made by git clone" \
        "https://github.com/google-research/big_vision" >&2
      exit 2
    fi
    extras="test,big-vision"
    venv=.venv-bv
    form=big_vision
    shift 2
    set -- -m big_vision "$@"
    export PYTHONPATH="$clone${PYTHONPATH:+:$PYTHONPATH}"
    export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
    ;;
  --faults)
    form=faults
    shift
    export ACED_INSTALL_SLURM=1
    [ "$#" -gt 0 ] || set -- tests/faults tests/launch
    set -- --faults "$@"
    ;;
esac
if [ -n "$form" ]; then
  set -- -p tests.forms --must-run "$form" "$@"
fi
install_extras "$extras"

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
exec "$venv/bin/python" -m pytest -n 2 --dist worksteal "$@"
