#!/usr/bin/env bash
# Runs the test suite and the linter: launch/test.sh [pytest arguments]
# Makes .venv and installs what the tests need where that is not there yet.

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_extras test

.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
