#!/usr/bin/env bash
# Healthy: no rank trains in this container, or its run has written something lately. A run that hangs keeps its
# processes alive and its devices busy, but writes no row, no log line and no checkpoint.
#
# environment
#   TRIDENT_HEALTH_SECONDS  how long is lately (default: 1800, as runtime.timeout_s); more than a step, an evaluation
#                           and train.log_every steps take
set -euo pipefail

limit="${TRIDENT_HEALTH_SECONDS:-1800}"
now="$(date +%s)"
for output in "${TRIDENT_PROC:-/proc}"/[0-9]*/fd/1; do
    # A rank's output goes to its log.
    log="$(readlink "$output" 2>/dev/null)" || continue
    [[ "$log" == */logs/rank_*.log ]] || continue
    run="${log%/logs/rank_*.log}"
    last=0
    for file in "$run"/metrics.jsonl "$run"/logs/* "$run"/checkpoints "$run"/checkpoints/*; do
        time="$(stat --format %Y "$file" 2>/dev/null)" || continue
        ((time <= last)) || last=$time
    done
    if ((now - last > limit)); then
        echo "$run has written nothing for $((now - last)) s"
        exit 1
    fi
done
