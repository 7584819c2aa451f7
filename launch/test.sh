#!/usr/bin/env bash
# Runs the test suite and the linter: launch/test.sh [--tpu] [pytest arguments]
# Makes .venv and installs what the tests need where that is not there yet.
# --tpu installs the TPU compiler too, which the tests marked `tpu` need; no TPU
# is used. `launch/test.sh --tpu -m tpu` runs them alone.

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
extras=test
if [ "${1:-}" = "--tpu" ]; then
  extras="test,tpu"
  shift
fi
install_extras "$extras"

.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
