# Completion of trident in bash. Written by `trident --install-completion bash`.
_trident_completion() {
    local IFS=$'\n' command=${COMP_WORDS[0]/#\~/$HOME} answer
    answer=$(command "$command" --complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null) || return 0
    COMPREPLY=()
    local line first=1
    while IFS= read -r line; do
        if ((first)); then
            # The first line says whether a blank may follow.
            [[ $line == open ]] && compopt -o nospace 2>/dev/null
            first=0
        else
            COMPREPLY+=("$line")
        fi
    done <<<"$answer"
}
complete -o nosort -F _trident_completion trident 2>/dev/null || complete -F _trident_completion trident
