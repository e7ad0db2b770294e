#!/usr/bin/env bash
# Install the test extras, then lint, check types and run the tests.
#
# usage: bash launch/test.sh [PYTEST ARGUMENT ...]
#   --run-slow      also tests that take minutes
#   --run-matrix    also the whole parity matrix
# See launch/setup.sh for PYTHON and TRIDENT_VENV.
set -euo pipefail

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
bin="$(cd "${TRIDENT_VENV:-.venv}/bin" && pwd)"

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/shellcheck" launch/*.sh launch/slurm.sbatch docker/*.sh .ci/run
"$bin/mypy"
# On two cores: one process for the tests that start ranks, one for those that wait, one for all others.
"$bin/python" -m pytest -n 3 "$@"
