#!/usr/bin/env bash
# Submit one Slurm job for each point of a sweep. Every job is a launch/slurm.sbatch with a folder of its own.
#
# usage: bash launch/slurm_sweep.sh [option ...] key=value,value ... [key=value ...]
#   bash launch/slurm_sweep.sh --nodes=1 experiment=gpt2_124m_8gpu optimizer.lr=3e-4,6e-4 run_dir=/shared/lr
#   --max-restarts N    as for launch/slurm.sbatch
#   --dry-run           check every point, print the commands, and submit none
#   --NAME=VALUE        any other option is sbatch's
# Values are written as for `trident train --multirun`: a,b or range(1,4). Nothing is submitted unless every point is
# legal. Run it from the folder that the jobs are to run in. See local.sh for TRIDENT_VENV, slurm.sbatch for the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=
own=()
options=()
while [[ "${1:-}" == -* ]]; do
    case "$1" in
        --help | -h) print_usage "$0" && exit 0 ;;
        --dry-run) dry_run=1 && shift ;;
        --max-restarts)
            need_number --max-restarts "${2:-}"
            own+=("$1" "$2")
            shift 2
            ;;
        --*=*) options+=("$1") && shift ;;
        *) fail "an option of sbatch must be written --name=value, but is $1" "see --help" ;;
    esac
done

find_trident
points="$("${trident[@]}" train --multirun --dry-run "$@")"
[[ -n "$dry_run" ]] || command -v sbatch >/dev/null || fail "sbatch must be installed here, but is not"
number=0
while read -r line; do
    [[ "$line" != \#* ]] || continue
    number=$((number + 1))
    words=()
    # The line is a command that can be pasted into a shell: `trident train WORD ...`.
    eval "words=(${line#trident train })"
    command=(sbatch "--job-name=trident-$number" ${options[@]+"${options[@]}"}
        "$(dirname "${BASH_SOURCE[0]}")/slurm.sbatch" ${own[@]+"${own[@]}"} "${words[@]}")
    if [[ -n "$dry_run" ]]; then
        print_command "${command[@]}"
    else
        "${command[@]}"
    fi
done <<<"$points"
