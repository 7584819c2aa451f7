#!/usr/bin/env bash
# Trains a reference and four students on built-in data and compares them:
#   launch/demo.sh [--seeds N] [--workdir DIR]
# Makes .venv and installs the package where that is not there yet. After that
# it takes some minutes on two CPU cores. Results are in runs/demo.

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_extras plot

exec .venv/bin/python -m aced.demo "$@"
