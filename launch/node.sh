#!/usr/bin/env bash
# Start this node's ranks of a run, with no launcher in between. Run it once on each node: in a pod, a container.
# Asked to stop (SIGTERM, SIGINT or SIGUSR1), it asks its ranks; all ranks of the run save, and it exits 75.
#
# usage: bash launch/node.sh [option ...] [key=value ...]
#   --nodes N            nodes of the run (default: $NNODES, or 1)
#   --node-rank N        which of them this is, from 0 (default: $NODE_RANK, $JOB_COMPLETION_INDEX, $SLURM_NODEID,
#                        $OMPI_COMM_WORLD_RANK or $PMI_RANK)
#   --ranks-per-node N   (default: $RANKS_PER_NODE, or the number of GPUs)
#   --master-addr HOST   node 0, as the others reach it (default: $MASTER_ADDR)
#   --master-port PORT   where rank 0 listens (default: $MASTER_PORT, or 29500)
#   --grace SECONDS      after the first rank has ended with an error, the others get (default: 60)
#   --max-restarts N     after a crash or a lost rank, here or on another node, start again from the newest checkpoint;
#                        give the same on every node (default: 0)
#   --dry-run            print the commands and do nothing
# With one node and no --ranks-per-node, trident starts the ranks that the layout needs. See local.sh for TRIDENT_VENV.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes="${NNODES:-1}"
node_rank="${NODE_RANK:-${JOB_COMPLETION_INDEX:-${SLURM_NODEID:-${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-}}}}}"
per_node="${RANKS_PER_NODE:-}"
address="${MASTER_ADDR:-}"
port="${MASTER_PORT:-29500}"
grace=60
max_restarts=0
dry_run=
while [[ "${1:-}" == -* ]]; do
    case "$1" in
        --help | -h) print_usage "$0" && exit 0 ;;
        --dry-run) dry_run=1 && shift && continue ;;
        --nodes) nodes="${2:-}" ;;
        --node-rank) node_rank="${2:-}" ;;
        --ranks-per-node) per_node="${2:-}" ;;
        --master-addr) address="${2:-}" ;;
        --master-port) port="${2:-}" ;;
        --grace) grace="${2:-}" ;;
        --max-restarts) max_restarts="${2:-}" ;;
        *) fail "there is no option $1" "see --help; settings are written key=value" ;;
    esac
    [[ $# -ge 2 ]] || fail "$1 must have a value, but has none"
    shift 2
done

need_number "--nodes (NNODES)" "$nodes"
need_number "--master-port (MASTER_PORT)" "$port"
need_number "--grace" "$grace"
need_number "--max-restarts" "$max_restarts"
# As the first process of a container it would not hear a signal otherwise, until it handles it.
trap 'exit 75' TERM INT USR1
find_trident
if ((nodes == 1)) && [[ -z "$per_node" ]]; then
    command=("${trident[@]}" train "$@")
    ((max_restarts == 0)) || command+=("launch.max_restarts=$max_restarts")
    [[ -z "$dry_run" ]] || { print_command "${command[@]}" && exit 0; }
    exec "${command[@]}"
fi
if ((nodes > 1)); then
    [[ -n "$node_rank" ]] || fail "--node-rank must say which of $nodes nodes this is, but nothing does" \
        "set NODE_RANK; an indexed Kubernetes Job, Slurm and mpirun say it themselves"
    [[ -n "$address" ]] || fail "--master-addr (MASTER_ADDR) must name node 0, but is not set"
fi
node_rank="${node_rank:-0}"
address="${address:-127.0.0.1}"
need_number "--node-rank (NODE_RANK)" "$node_rank"
((node_rank < nodes)) || fail "--node-rank must be less than --nodes ($nodes), but is $node_rank"
per_node="${per_node:-$("${facts[@]}" gpus)}"
need_number "--ranks-per-node (RANKS_PER_NODE)" "$per_node"
((per_node > 0)) || fail "--ranks-per-node must say how many ranks to start, since this node has no GPU"

rank_command() {
    local local_rank="$1"
    shift
    command=(env "RANK=$((node_rank * per_node + local_rank))" "WORLD_SIZE=$((nodes * per_node))"
        "LOCAL_RANK=$local_rank" "LOCAL_WORLD_SIZE=$per_node" "MASTER_ADDR=$address" "MASTER_PORT=$port"
        TRIDENT_NODE_SCRIPT=1 "${trident[@]}" train "$@")
}

if [[ -n "$dry_run" ]]; then
    for ((local_rank = 0; local_rank < per_node; local_rank++)); do
        rank_command "$local_rank" "$@"
        print_command "${command[@]}"
    done
    exit 0
fi

ranks=()
asked=
# shellcheck disable=SC2329  # the trap calls it
ask_to_stop() {
    asked=1
    ((${#ranks[@]} == 0)) || kill -USR1 "${ranks[@]}" 2>/dev/null || true
}
trap 'ask_to_stop' TERM INT USR1

# Set `code`: how the first rank that failed ended, or 0.
run_ranks() {
    local local_rank timer='' left rank status
    code=0
    for ((local_rank = 0; local_rank < per_node; local_rank++)); do
        rank_command "$local_rank" "$@"
        "${command[@]}" &
        ranks+=($!)
    done
    while ((${#ranks[@]} > 0)); do
        wait -n "${ranks[@]}" ${timer:+"$timer"} 2>/dev/null || true
        # Of several that end at once, or while a signal is handled, `wait -n` forgets some; a plain `wait` knows all.
        left=()
        for rank in "${ranks[@]}"; do
            if kill -0 "$rank" 2>/dev/null; then
                left+=("$rank")
                continue
            fi
            status=0
            wait "$rank" 2>/dev/null || status=$?
            ((code != 0)) || code=$status
        done
        ranks=(${left[@]+"${left[@]}"})
        if [[ -n "$timer" ]] && ! kill -0 "$timer" 2>/dev/null; then
            kill -KILL ${ranks[@]+"${ranks[@]}"} 2>/dev/null || true
            timer=
        elif ((code != 0)) && [[ -z "$timer" ]]; then
            sleep "$grace" &
            timer=$!
        fi
    done
    [[ -z "$timer" ]] || kill "$timer" 2>/dev/null || true
}

while :; do
    run_ranks "$@"
    [[ -z "$asked" ]] || break
    starts_again "$code" "$@" || break
    # Asked while it waited: all that there is was saved by the attempt before.
    [[ -z "$asked" ]] || exit 75
done
# Asked before a rank listened: it died of the signal, and there was nothing to save.
if [[ -n "$asked" ]] && ((code == 138)); then code=75; fi
exit "$code"
