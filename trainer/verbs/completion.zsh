#compdef trident
# Completion of trident in zsh. Written by `trident --install-completion zsh`.
_trident() {
    emulate -L zsh
    local -a closed closed_shown opened opened_shown
    local command=${(Q)words[1]} current=${(Q)PREFIX} line
    local -a columns
    # With an open quote, zsh keeps the quote itself apart.
    [[ -n $compstate[quote] ]] && current=$PREFIX
    for line in "${(@f)$(command ${~command} --complete zsh "$current" "${(@Q)words[2,CURRENT-1]}" 2>/dev/null)}"; do
        [[ -z $line ]] && continue
        columns=("${(@s:	:)line}")
        local shown=$columns[1]
        [[ -n $columns[2] ]] && shown="$columns[1]  -- $columns[2]"
        if [[ $columns[3] == open ]]; then
            opened+=("$columns[1]")
            opened_shown+=("$shown")
        else
            closed+=("$columns[1]")
            closed_shown+=("$shown")
        fi
    done
    (( $#opened )) && compadd -U -l -S '' -d opened_shown -a opened
    (( $#closed )) && compadd -U -l -d closed_shown -a closed
    return 0
}
if [[ $funcstack[1] == _trident ]]; then
    _trident "$@"
else
    compdef _trident trident
fi
