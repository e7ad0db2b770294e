# shellcheck shell=bash
# What the scripts beside it share. Sourced, not run.

fail() {
    echo "error: $1" >&2
    [[ -z "${2:-}" ]] || echo "hint: $2" >&2
    exit 2
}

# Print the comment at the top of a script.
print_usage() {
    sed -n '/^set -euo/q;/^#SBATCH/d;2,$s/^# \{0,1\}//p' "$1"
}

# Print a command so that it can be pasted into a shell.
print_command() {
    printf '%q ' "$@" | sed 's/ $/\n/'
}

need_number() {
    [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 must be a number, but is '$2'"
}

# Return 0 after the time to wait if an attempt that ended with status $1 is to be followed by another; the rest are
# settings. Reads `max_restarts`, keeps `restarts` and `ended_at`. A signal ends the wait: look at `asked` then.
restarts=0
ended_at=
starts_again() {
    local status="$1" answer pause
    shift
    # 0 and 75: it is done, or was asked. 130 and 143: by Ctrl-C or SIGTERM, which nobody handed on.
    [[ "${max_restarts:-0}" != 0 && ! "$status" =~ ^(0|75|130|143)$ ]] || return 1
    answer="$("${facts[@]}" again "$status" "$max_restarts" "$ended_at" "$@")" || return 1
    restarts=$((restarts + 1))
    ended_at+="${ended_at:+,}${answer#* }"
    echo "starting again in ${answer% *} s, from the newest checkpoint (last step logged: ${answer#* })" >&2
    sleep "${answer% *}" &
    pause=$!
    while [[ "${asked:-0}" == 0 ]] && kill -0 "$pause" 2>/dev/null; do sleep 0.2; done
    kill "$pause" 2>/dev/null || true
    # The ranks count it in restarts.json and summary.json.
    export TRIDENT_RESTART_COUNT="$restarts"
}

# Set `python` (a command: the interpreter that has Trident) and `trident` (the same with the module).
# Looks at TRIDENT_VENV, at .venv beside this folder, and at python3; a source tree beside this folder goes first.
find_trident() {
    local root interpreter=python3
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    if [[ -n "${TRIDENT_VENV:-}" ]]; then
        interpreter="$TRIDENT_VENV/bin/python"
    elif [[ -x "$root/.venv/bin/python" ]]; then
        interpreter="$root/.venv/bin/python"
    fi
    # A trainer.py in the user's folder must not be taken for the package.
    python=(env PYTHONSAFEPATH=1)
    if [[ -f "$root/trainer/cli.py" ]]; then
        python+=("PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}")
    fi
    python+=("$interpreter")
    "${python[@]}" -c 'import trainer, hydra' 2>/dev/null ||
        fail "$interpreter must have Trident installed, but has not" \
            "run launch/setup.sh, or set TRIDENT_VENV to the environment that has it"
    # shellcheck disable=SC2034  # for who sources this
    trident=("${python[@]}" -m trainer)
    # shellcheck disable=SC2034
    facts=("${python[@]}" "$root/launch/facts.py")
}
