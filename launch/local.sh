#!/usr/bin/env bash
# Train on this machine. Trident starts the ranks that the layout needs; GPUs are used where there are any.
#
# usage: bash launch/local.sh [--dry-run] [key=value ...]
#   key=value       any setting, for example: experiment=gpt2_124m_8gpu run_dir=runs/mine
#   --dry-run       print the command and do nothing
# environment
#   TRIDENT_VENV    the environment that has Trident (default: .venv beside this folder, else python3)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=
while [[ "${1:-}" == -* ]]; do
    case "$1" in
        --help | -h) print_usage "$0" && exit 0 ;;
        --dry-run) dry_run=1 && shift ;;
        *) fail "there is no option $1" "see --help; settings are written key=value" ;;
    esac
done

find_trident
command=("${trident[@]}" train "$@")
if [[ -n "$dry_run" ]]; then
    print_command "${command[@]}"
    exit 0
fi
exec "${command[@]}"
