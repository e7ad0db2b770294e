#!/usr/bin/env bash
# Train a small GPT in pipeline x tensor x data parallel on this machine, and let it write.
#
# usage: bash launch/demo.sh [RUN_DIR] [key=value ...]
#   RUN_DIR         folder of the run (default: runs/demo); a run that was interrupted goes on
#   key=value       any setting, as for `trident train`, for example train.steps=1000
# Without GPUs it starts 8 processes on the CPU (2 x 2 x 2); with GPUs, as many ranks as the largest layout that fits.
# See launch/setup.sh for PYTHON and TRIDENT_VENV.
set -euo pipefail

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
run_dir=runs/demo
if [[ $# -gt 0 && "$1" != *=* ]]; then
    run_dir="$1"
    shift
fi

bash launch/setup.sh
trident="${TRIDENT_VENV:-.venv}/bin/trident"

gpus="$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' 2>/dev/null | wc -l)"
case "$gpus" in
    0) layout=tp2_pp2_dp2 ;;
    1) layout=single ;;
    2 | 3) layout=pp2 ;;
    [4-7]) layout=tp2_pp2 ;;
    *) layout=tp2_pp2_dp2 ;;
esac

"$trident" train experiment=demo layout="$layout" run_dir="$run_dir" "$@"
echo
echo "what it writes after 'def ':"
"$trident" generate checkpoint="$run_dir" prompt="def " max_tokens=100 temperature=0.7 seed=1
echo
echo "the run is in $run_dir; more text: $trident generate checkpoint=$run_dir prompt='class '"
