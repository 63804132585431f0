#!/bin/sh
# Run lth_scale.imp under torchrun: launchers/torchrun.sh PROCESSES FLAGS…
# On a machine without GPUs: ACCELERATE_USE_CPU=true launchers/torchrun.sh 2 --task mlm --preset demo
set -eu
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0"; exit 2; }
processes=$1
shift
exec torchrun --standalone --nproc_per_node "$processes" -m lth_scale.imp "$@"
