#!/usr/bin/env bash
# One rank: run a command and leave its exit status for the batch script (slurm/common.sh), which decides by it.
# Launchers turn every failure into status 1, and a stop (75, saved) is no failure to them.
{ # read as a whole before it runs
trap ':' TERM # end after the command, not before it
"$@"
status=$?
echo "$status" >"$COLORGAN_STATE/rank-${RANK:-0}"
[ "$status" -eq 75 ] && exit 0
exit "$status"
}
