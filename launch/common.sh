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
