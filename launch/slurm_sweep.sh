#!/usr/bin/env bash
# Submit a sweep as one array of Slurm jobs, a job for each point. Every job is a launch/slurm.sbatch with a folder of
# its own.
#
# usage: bash launch/slurm_sweep.sh [option ...] key=value,value ... [key=value ...]
#   bash launch/slurm_sweep.sh --nodes=1 --limit 4 experiment=gpt2_124m_8gpu optimizer.lr=3e-4,6e-4 run_dir=/shared/lr
#   --limit N           run at most N points at the same time (default: as many as the cluster has room for)
#   --max-restarts N    as for launch/slurm.sbatch
#   --dry-run           check every point, print the commands, and submit none
#   --NAME=VALUE        any other option is sbatch's
# Values are written as for `trident train --multirun`: a,b or range(1,4). Nothing is submitted unless every point is
# legal; a point that has finished before is left out. The points are written into a file trident-sweep-*.txt, which the
# jobs read. Run it from the folder that the jobs are to run in. See local.sh for TRIDENT_VENV, slurm.sbatch for the
# rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=
limit=
output=(--output=slurm-%A_%a.out)
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
        --limit)
            need_number --limit "${2:-}"
            ((10#$2 > 0)) || fail "--limit must be at least 1, but is $2"
            limit="%$((10#$2))"
            shift 2
            ;;
        --array=*)
            fail "the array is made of the points of the sweep, but $1 is given" "at most N at a time: --limit N"
            ;;
        --*=*)
            [[ "$1" != --output=* ]] || output=()
            options+=("$1")
            shift
            ;;
        *) fail "an option of sbatch must be written --name=value, but is $1" "see --help" ;;
    esac
done

for word in "$@"; do
    [[ "$word" != sweeper=* || "$word" == sweeper=grid ]] ||
        fail "$word has no points to list, since each is chosen by the results of those before" \
            "run the whole search in one job, as the ranks of one machine: trident train --multirun $word ..."
done
find_trident
points="$("${trident[@]}" train --multirun --dry-run "$@")"
[[ -n "$dry_run" ]] || command -v sbatch >/dev/null || fail "sbatch must be installed here, but is not"
# The others are comments: titles, and points that have finished before.
lines="$(grep '^trident train ' <<<"$points" || true)"
[[ -n "$lines" ]] || { echo "every point has finished before" && exit 0; }
read -r sum _ < <(cksum <<<"$lines")
file="$PWD/trident-sweep-$sum.txt"
command=(sbatch --job-name=trident-sweep "--array=1-$(wc -l <<<"$lines" | tr -d ' ')$limit" ${output[@]+"${output[@]}"}
    ${options[@]+"${options[@]}"} "$(dirname "${BASH_SOURCE[0]}")/slurm.sbatch" ${own[@]+"${own[@]}"} --points "$file")
if [[ -n "$dry_run" ]]; then
    echo "# $file"
    echo "$lines"
    print_command "${command[@]}"
else
    echo "$lines" >"$file"
    "${command[@]}"
fi
