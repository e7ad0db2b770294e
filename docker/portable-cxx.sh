#!/usr/bin/env bash
# The C++ compiler of the image's build. DeepSpeed compiles its Adam for the processor it is built on, and an image made
# on one machine would end with an illegal instruction on an older one: this compiles for CPU_ARCH instead.
set -euo pipefail

arguments=()
for argument in "$@"; do
    case "$argument" in
        -march=native) argument="-march=${CPU_ARCH:-x86-64-v3}" ;;
        -D__AVX512__) argument=-D__AVX256__ ;;
    esac
    arguments+=("$argument")
done
exec g++ "${arguments[@]}"
