# Completion of trident in fish. Written by `trident --install-completion fish`.
function __trident_complete
    set -l tokens (commandline -opc)
    set -l command (string replace -r '^~' $HOME -- $tokens[1])
    command $command --complete fish (commandline -ct | string collect --allow-empty) $tokens[2..-1] 2>/dev/null
end
complete -c trident -f -a '(__trident_complete)'
