# Exit code 0 where the processes of this container used a second of processor time or more since the last look, or one
# of them has ended. A training that is stopped, deadlocked or waits for a lost disk uses less.
memory=${TMPDIR:-/tmp}/healthy
now=$(cat /proc/[0-9]*/stat 2>/dev/null | awk '{ sub(/.*\) /, ""); ticks += $12 + $13 + $14 + $15 } END { printf "%d\n", ticks }')
before=$(cat "$memory" 2>/dev/null || echo 0)
echo "$now" >"$memory"
used=$((now - before))
[ "$used" -lt 0 ] || [ "$used" -ge "$(getconf CLK_TCK)" ]
