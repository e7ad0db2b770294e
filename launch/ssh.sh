#!/usr/bin/env bash
# Train on the hosts of a hostfile, through the deepspeed launcher: with pdsh, or started on each host by you.
# Asked to stop (Ctrl-C, SIGTERM or SIGUSR1), the run saves and this exits 75; a second time, it is ended.
#
# usage: bash launch/ssh.sh [option ...] [key=value ...]
#   --hostfile FILE      a line for each node, `HOST slots=RANKS` or `USER@HOST slots=RANKS`, the first one with rank 0
#                        (default: hostfile)
#   --no-ssh             start the ranks of this node only; run the same command on every node
#   --node-rank N        with --no-ssh: this node's line, from 0 (default: the line that names this host)
#   --master-addr HOST   the first node, as the others reach it (default: its name in the hostfile)
#   --master-port PORT   where rank 0 listens (default: 29500)
#   --ssh-port PORT      of the nodes' ssh servers
#   --export NAME        one more variable to hand to the other nodes; may be repeated
#   --max-restarts N     after a crash or a lost rank or node, start again from the newest checkpoint; with --no-ssh,
#                        give the same on every node (default: 0)
#   --dry-run            print the command and do nothing
# pdsh starts ranks in login shells that know nothing of this one. DeepSpeed hands on PYTHON*, UCX* and the like; this
# script adds NCCL_*, GLOO_*, OMP_*, HF_*, WANDB_*, TRIDENT_*, DS_ACCELERATOR and LD_LIBRARY_PATH, but nothing that
# looks like a secret: it would be on every node's command lines. The nodes' login shell must be bash or zsh, and the
# current folder must exist on all of them. See local.sh for TRIDENT_VENV.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

hostfile=hostfile
no_ssh=
node_rank=
address=
port=29500
ssh_port=
max_restarts=0
exports=()
dry_run=
while [[ "${1:-}" == -* ]]; do
    [[ "$1" != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
    case "$1" in
        --help | -h) print_usage "$0" && exit 0 ;;
        --dry-run) dry_run=1 && shift && continue ;;
        --no-ssh) no_ssh=1 && shift && continue ;;
        --hostfile) hostfile="${2:-}" ;;
        --node-rank) node_rank="${2:-}" ;;
        --master-addr) address="${2:-}" ;;
        --master-port) port="${2:-}" ;;
        --ssh-port) ssh_port="${2:-}" ;;
        --export) exports+=("${2:-}") ;;
        --max-restarts) max_restarts="${2:-}" ;;
        *) fail "there is no option $1" "see --help; settings are written key=value" ;;
    esac
    [[ $# -ge 2 ]] || fail "$1 must have a value, but has none"
    shift 2
done

hosts=()
places=
read_hosts() {
    local host slots lines
    lines="$("${facts[@]}" hosts "$hostfile")"
    while read -r host slots; do
        hosts+=("$host")
        places+="${places:+,}${host##*@}=$slots"
    done <<<"$lines"
}

# pdsh, its patterns (%h) and the nodes' shells each read a word once more, and DeepSpeed adds quotes around spaces:
# what is not plain is written in codes that pass through all of them.
remote_word() {
    local LC_ALL=C index character code
    if [[ "$1" =~ ^[A-Za-z0-9_@+=:,./-]+$ ]]; then
        printf '%s' "$1"
        return
    fi
    printf "\$'"
    for ((index = 0; index < ${#1}; index++)); do
        character="${1:index:1}"
        if [[ "$character" =~ [A-Za-z0-9_@+=:,./-] ]]; then
            printf '%s' "$character"
        else
            printf -v code '%d' "'$character"
            printf '\\x%02x' "$((code & 255))"
        fi
    done
    printf "'"
}

# Print NAME=VALUE lines for DeepSpeed to export on every node.
environment_lines() {
    local file name value
    for file in "$HOME/.deepspeed_env" .deepspeed_env; do
        [[ ! -r "$file" ]] || cat "$file"
    done
    for name in $(compgen -e); do
        case "$name" in
            NCCL_* | GLOO_* | OMP_* | HF_* | WANDB_* | TRIDENT_* | DS_ACCELERATOR | LD_LIBRARY_PATH) ;;
            *) [[ " ${exports[*]-} " == *" $name "* ]] || continue ;;
        esac
        value="${!name-}"
        if [[ "$name" =~ KEY|TOKEN|SECRET|PASSW ]]; then
            echo "warning: $name is not handed to the nodes, where everyone could read it; log in there once" >&2
        elif [[ ! "$value" =~ ^[A-Za-z0-9_@+=:,./\ -]*$ ]]; then
            echo "warning: $name is not handed to the nodes: its value has characters that a shell would read" >&2
        else
            echo "$name=$value"
        fi
    done
}

find_trident
read_hosts
[[ -n "$address" ]] || address="$("${facts[@]}" master "$hostfile")"
need_number --master-port "$port"
need_number --max-restarts "$max_restarts"
run_dir="$("${facts[@]}" folder "$places" "$@")"

command=("${python[@]}" -m deepspeed.launcher.runner --hostfile "$hostfile" --master_addr "$address"
    --master_port "$port" --no_local_rank)
words=()
if [[ -n "$no_ssh" ]]; then
    [[ -n "$node_rank" ]] || node_rank="$("${facts[@]}" place "$hostfile")"
    need_number --node-rank "$node_rank"
    ((node_rank < ${#hosts[@]})) || fail "--node-rank must be less than ${#hosts[@]} (hosts), but is $node_rank"
    command+=(--no_ssh --node_rank "$node_rank")
    words=("$@")
else
    # Even for one host: otherwise no shell would take the codes out of the words again.
    command+=(--launcher pdsh --force_multi ${ssh_port:+--ssh_port "$ssh_port"})
    for word in "$@"; do words+=("$(remote_word "$word")"); done
fi
command+=(--module trainer train ${words[@]+"${words[@]}"})

if [[ -n "$dry_run" ]]; then
    [[ -n "$no_ssh" ]] || environment_lines | sed 's/^/# on every node: export /'
    print_command "${command[@]}"
    exit 0
fi
if [[ -z "$no_ssh" ]]; then
    command -v pdsh >/dev/null || fail "pdsh must be installed here, but is not" "or use --no-ssh on every node"
    DS_ENV_FILE="$(mktemp)"
    export DS_ENV_FILE
    trap 'rm -f "$DS_ENV_FILE"' EXIT
fi

# One rank that is asked is enough: all of them agree on the step after which they save and end.
# In a trap a bare `return` would give the code of what the signal interrupted.
# shellcheck disable=SC2329  # the trap calls it
ask_a_rank() {
    local file entry host pid
    for file in "$run_dir"/logs/rank_*.pid; do
        entry="$(sed -n 's/.*"host": "\([^"]*\)", "pid": \([0-9]*\).*/\1 \2/p' "$file" 2>/dev/null)" || continue
        read -r host pid <<<"$entry"
        if [[ "$host" == "$(hostname)" ]]; then
            kill -USR1 "$pid" 2>/dev/null && return 0
        elif [[ -z "$no_ssh" && "$file" == */rank_0.pid ]]; then
            ssh ${ssh_port:+-p "$ssh_port"} "${hosts[0]}" kill -USR1 "$pid" && return 0
        fi
    done
    return 1
}

asked=0
launcher=
too_early=
signalled=
# shellcheck disable=SC2329  # the trap calls it
on_signal() {
    signalled=1
    asked=$((asked + 1))
    if [[ -z "$launcher" ]] || ! kill -0 "$launcher" 2>/dev/null; then
        return 0
    elif ((asked == 1)) && ask_a_rank; then
        echo "asked to stop: saving; once more to end it at once" >&2
    elif ((asked <= 2)); then
        ((asked > 1)) || too_early=1
        kill -TERM -- "-$launcher" 2>/dev/null || true
    else
        kill -KILL -- "-$launcher" 2>/dev/null || true
    fi
}

# The first node writes that the run has finished, perhaps a moment after this one has.
has_finished() {
    local tries=1
    [[ -z "$no_ssh" || "$node_rank" == 0 ]] || tries=5
    for ((; tries > 0; tries--)); do
        "${facts[@]}" finished "$@" && return 0
        ((tries == 1)) || sleep 1
    done
    return 1
}

# Set `code`: how the launcher ended.
run_launcher() {
    [[ -n "$no_ssh" ]] || environment_lines >"$DS_ENV_FILE"
    # In a session of its own: a Ctrl-C would make the launcher end the ranks before they save.
    setsid "${command[@]}" &
    launcher=$!
    while :; do
        signalled=
        code=0
        wait "$launcher" || code=$?
        [[ -n "$signalled" ]] || break
    done
    # A rank that still hangs would meet those of the next attempt.
    kill -KILL -- "-$launcher" 2>/dev/null || true
}

trap 'on_signal' INT TERM HUP USR1
while :; do
    run_launcher
    # The deepspeed launcher also ends with 0 when its helper is killed.
    unfinished=
    if ((code == 0)) && ! has_finished "$@"; then
        unfinished=1
        code=1
    fi
    ((asked == 0)) || break
    starts_again "$code" "$@" || break
    ((asked == 0)) || exit 75
done
# Asked when no rank worked: before the first step there is nothing to save, after the last one all is done.
if [[ -n "$too_early" ]] && ((code != 0)); then
    "${facts[@]}" finished "$@" || exit 75
    exit 0
fi
if [[ -n "$unfinished" ]]; then
    echo "error: the run must finish, but the launcher ended before it did; see $run_dir/logs" >&2
fi
exit "$code"
