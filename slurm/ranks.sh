#!/usr/bin/env bash
# The ranks of a training step of a study: launcher/study.py starts this as its --launch inside a job (slurm/step.sh).
# SIGTERM, by which study.py stops a step, asks the ranks to save and stop; the exit status is theirs.
set -uo pipefail
{ # read as a whole before it runs
ranks=()
# shellcheck source=/dev/null
. "$COLORGAN_STATE/ranks.env" # fills `ranks`
export COLORGAN_STATE=$COLORGAN_STATE/ranks
rm -rf "$COLORGAN_STATE"
mkdir -p "$COLORGAN_STATE"

# A group of their own: srun would take SIGTERM as an order to kill.
setsid "${ranks[@]}" "$@" </dev/null &
group=$!
trap 'kill -s USR2 -- "-$group" 2>/dev/null' TERM
status=0
while :; do
    wait "$group" && status=0 || status=$?
    kill -0 "$group" 2>/dev/null || break
done

# Launchers turn every failure into status 1; each rank has left its own.
while read -r own; do
    [ "$own" -eq 0 ] || exit "$own"
    status=0
done < <(cat "$COLORGAN_STATE"/rank-* 2>/dev/null | sort -nu)
exit "$status"
}
