#!/usr/bin/env bash
# Make a virtual environment and install Trident into it. Run again at any time: it does only what is missing.
#
# usage: bash launch/setup.sh [EXTRA]
#   EXTRA           optional dependencies to install as well, for example: test
# environment
#   PYTHON          interpreter to make the environment with (default: python3)
#   TRIDENT_VENV    where the environment lives (default: .venv beside this folder)
set -euo pipefail

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 0
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${TRIDENT_VENV:-$root/.venv}"
python="${PYTHON:-python3}"
extra="${1:-}"

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Trident needs Python 3.11 or newer, but $python is $("$python" --version 2>&1 || echo missing); set PYTHON" >&2
    exit 2
fi
if [[ ! -x "$venv/bin/python" ]]; then
    "$python" -m venv "$venv" || {
        echo "error: $python must be able to make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    }
fi

# What was installed, and from what: nothing to do while neither changed.
stamp="$venv/.trident-$(cat "$root/setup.cfg" "$root/constraints.txt" | cksum | tr ' ' '-')${extra:+-$extra}"
if [[ ! -e "$stamp" ]]; then
    echo "installing into $venv (once; takes a few minutes)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root${extra:+[$extra]}"
    touch "$stamp"
fi
