#!/usr/bin/env bash
# What a container of Trident's image does.
#
# usage: docker run [option ...] trident:cuda COMMAND
#   train [key=value ...]   this node's ranks; over several nodes, launch/node.sh says which variables tell which
#   sshd                    nothing but an ssh server, for a node that ranks are started on with pdsh
#   WORD ...                any other command, as it is: trident data ..., torchrun ..., bash
# environment
#   TRIDENT_SSHD=1          an ssh server beside the command
#   TRIDENT_SSHD_PORT       where it listens (default: 2222)
#   TRIDENT_AUTHORIZED_KEYS file with the keys that may log in (default: ~/.ssh/authorized_keys); nothing else can
set -euo pipefail

# A first process of a container hears no signal before it handles it, and has to take in what others leave behind: an
# init does both, also where a command replaces the image's entrypoint.
if (($$ == 1)) && command -v tini >/dev/null; then
    exec tini -- bash "$0" "$@"
fi

here="${TRIDENT_LAUNCH:-/opt/trident/launch}"

# A container may run under an id that has no name and no home, or with a home that is read-only.
if ! id -un >/dev/null 2>&1; then
    export USER="${USER:-trident}" LOGNAME="${LOGNAME:-trident}"
fi
home="${HOME:-/}"
if [[ ! -d "$home" || ! -w "$home" ]]; then
    HOME="$(mktemp -d "${TMPDIR:-/tmp}/home.XXXXXX")"
    export HOME
fi

# Host keys are made for this container alone. Without root, sshd lets only this user in.
start_sshd() {
    local folder sshd keys="${TRIDENT_AUTHORIZED_KEYS:-$home/.ssh/authorized_keys}"
    if [[ ! -r "$keys" ]]; then
        echo "error: TRIDENT_AUTHORIZED_KEYS must name a file with public keys, but $keys cannot be read" >&2
        exit 2
    fi
    folder="$(mktemp -d "${TMPDIR:-/tmp}/sshd.XXXXXX")"
    ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key"
    cp "$keys" "$folder/authorized_keys"
    sshd="$(PATH="$PATH:/usr/sbin" command -v sshd)"
    "$sshd" "$@" -e -f /dev/null -p "${TRIDENT_SSHD_PORT:-2222}" -h "$folder/host_key" \
        -o "AuthorizedKeysFile=$folder/authorized_keys" -o "PidFile=$folder/pid" -o StrictModes=no -o UsePAM=no \
        -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=prohibit-password
}

case "${1:-}" in
    sshd)
        start_sshd -D
        exit
        ;;
    "") set -- trident --help ;;
esac
if [[ "${TRIDENT_SSHD:-}" == 1 ]]; then
    start_sshd
fi
if [[ "$1" == train ]]; then
    shift
    exec bash "$here/node.sh" "$@"
fi
exec "$@"
