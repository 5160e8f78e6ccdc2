#!/usr/bin/env bash
# Goes on with the run at PLACE, or starts it where there is none: for schedulers that give the same command again after a
# spot notice, a lost head node or a time limit.
# usage: run-or-resume.sh run|train|collect PLACE [OPTIONS of that command]
set -uo pipefail

if [ $# -lt 2 ]; then
    echo "usage: run-or-resume.sh run|train|collect PLACE [OPTIONS]" >&2
    exit 2
fi
command=$1
place=$2
shift 2

# SIGTERM goes on to cqlray, which stops in order; bash alone would end at once and leave it behind.
child=
signalled=
trap 'signalled=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT

follow() {
    local status
    "$@" &
    child=$!
    wait "$child"
    status=$?
    while [ -n "$signalled" ] && kill -0 "$child" 2>/dev/null; do # a signal ends `wait`, not the child
        wait "$child"
        status=$?
    done
    return "$status"
}

# --trust: the job names PLACE, and a new pod's home lacks the key that the run was signed with.
follow cqlray resume --if-there --trust "$place"
status=$?
# 3 alone is "no run there"; what else went wrong (a full disk, a run in use, no credentials) has been said, and ends here.
if [ "$status" -ne 3 ] || [ -n "$signalled" ]; then
    exit "$status"
fi
echo "run-or-resume: nothing to go on with at $place; starting" >&2
follow cqlray "$command" --out "$place" "$@"
