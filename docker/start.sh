# Flags alone search for a ticket, a module of lth_scale is launched, any other command runs as it is given.
#
# A container ends with this process, and Accelerate's launcher dies of SIGTERM before its training has saved. So what is
# launched forms a group; SIGTERM (`docker stop`) and SIGINT are passed to all of it as SIGTERM, and all of it is awaited.
case ${1:-} in
'' | -*) set -- accelerate launch -m lth_scale.imp "$@" ;;
lth_scale.*) set -- accelerate launch -m "$@" ;;
esac
[ "$1" = accelerate ] || exec "$@"

working() { # whether any of the group still runs; where no init collects the dead, they stay on as zombies
    cat /proc/[0-9]*/stat 2>/dev/null |
        awk -v group="$group" '{ sub(/.*\) /, "") } $3 == group && $1 != "Z" { some = 1 } END { exit !some }'
}

setsid "$@" &
group=$!
trap 'kill -s TERM -- "-$group" || kill -s TERM "$group"' TERM INT
wait "$group"
status=$?
while working; do sleep 1; done
exit "$status"
