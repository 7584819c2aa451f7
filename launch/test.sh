#!/usr/bin/env bash
# Runs the test suite and the linter:
#   launch/test.sh [--tpu | --beam | --faults] [pytest arguments]
# Makes .venv and installs what the tests need where that is not there yet.
# --tpu installs the TPU compiler too, which the tests marked `tpu` need; no TPU
# is used. `launch/test.sh --tpu -m tpu` runs them alone.
# --beam installs Apache Beam, which those marked `beam` need, in an environment
# of its own, .venv-beam: it wants older packages than the rest.
# --faults runs tests/faults as often as docs/operations.md claims, most of an
# hour, and the jobs of SLURM for real; as root on Debian it installs SLURM,
# which nothing else here does.

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
extras=test
case "${1:-}" in
  --tpu)
    extras="test,tpu"
    shift
    ;;
  --beam)
    extras="test,beam"
    venv=.venv-beam
    shift
    ;;
  --faults)
    shift
    export ACED_INSTALL_SLURM=1
    [ "$#" -gt 0 ] || set -- tests/faults tests/launch
    set -- --faults "$@"
    ;;
esac
install_extras "$extras"

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
exec "$venv/bin/python" -m pytest -n 2 --dist worksteal "$@"
