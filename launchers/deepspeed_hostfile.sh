#!/bin/bash
# launchers/deepspeed_hostfile.sh HOSTFILE FLAGS…       (CONFIG: a file of accelerate_configs/; MASTER_ADDR; MASTER_PORT)
# Starts accelerate launch -m lth_scale.imp over ssh on each host of a DeepSpeed hostfile, whose lines are HOST slots=N.
# Start it on a machine that reaches all hosts without a password, from the repository, with the environment active; both
# lie in the same place on all. Further variables for the hosts, tokens too, belong into their ~/.deepspeed_env.
set -u
[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
hostfile=$1
shift
refuse() { echo "error: $hostfile: $*" >&2; exit 2; }

if [ ! -r "$hostfile" ] || [ -d "$hostfile" ]; then refuse "cannot be read; give a file of lines HOST slots=N"; fi
hosts=() slots='' number=0
while read -r line || [ -n "$line" ]; do
    number=$((number + 1)) line=${line%%#*}
    line=${line%"${line##*[![:space:]]}"}
    [ -n "$line" ] || continue
    [[ $line =~ ^([A-Za-z0-9][A-Za-z0-9._@:-]*)[[:space:]]+slots=([1-9][0-9]*)$ ]] ||
        refuse "line $number: '$line' is not HOST slots=N"
    host=${BASH_REMATCH[1]}
    [[ " ${hosts[*]} " != *" $host "* ]] || refuse "line $number: $host is there twice"
    [ "${slots:=${BASH_REMATCH[2]}}" = "${BASH_REMATCH[2]}" ] ||
        refuse "line $number: $host has another number of slots; Accelerate wants the same on all"
    hosts+=("$host")
done <"$hostfile"
[ ${#hosts[@]} -gt 0 ] || refuse "names no host; give lines HOST slots=N"

# A host's launcher is told to stop, and its ranks write a checkpoint, when ssh or this script ends, however it does.
# shellcheck disable=SC2016 # meant for the other end
there='exec 3<&0; set -a; [ ! -f ~/.deepspeed_env ] || . ~/.deepspeed_env; set +a; "$@" </dev/null & run=$!
{ cat; kill "$run"; } <&3 >/dev/null 2>&1 & wait "$run"'
variables=()
for name in $(compgen -e | grep -E '^(PATH|(ACCELERATE|CUDA|GLOO|NCCL|OMP|TORCH)_.*|HF_HUB_OFFLINE)$'); do
    variables+=("$name=${!name}")
done

exec 4< <(while sleep 1 && kill -0 $$; do :; done 2>/dev/null)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null' EXIT
trap 'exit 143' INT TERM
for rank in "${!hosts[@]}"; do
    work=(env "${variables[@]}" accelerate launch --config_file "${CONFIG:-accelerate_configs/multi_node_zero3.yaml}"
        --deepspeed_multinode_launcher standard --num_machines "${#hosts[@]}" --machine_rank "$rank"
        --num_processes $((${#hosts[@]} * slots)) --main_process_ip "${MASTER_ADDR:-${hosts[0]#*@}}"
        --main_process_port "${MASTER_PORT:-29500}" -m lth_scale.imp "$@")
    ssh -o BatchMode=yes "${hosts[rank]}" \
        "cd $(printf %q "$PWD") && exec bash -c $(printf %q "$there") launch $(printf '%q ' "${work[@]}")" <&4 &
    pids+=("$!")
done

left=("${pids[@]}")
while [ ${#left[@]} -gt 0 ]; do
    sleep 1
    for i in "${!left[@]}"; do
        if kill -0 "${left[i]}" 2>/dev/null; then continue; fi
        wait "${left[i]}" || exit # with its code; the others are stopped
        unset "left[i]"
    done
done
