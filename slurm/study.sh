#!/usr/bin/env bash
# Submit a whole study:  slurm/study.sh --config study_sample --out studies/sample
# The words are those of launcher/study.py, which names the steps; each becomes a job that waits for its parents. Run it
# again whenever you like: what is done or in the queue is left alone, what has failed is submitted again.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
root=${script%/slurm/study.sh}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

help_instead study "$@"
check_time "$(seconds_of "$SITE_TIME")"
find_python
words=("$@")
study=$(realpath -m "$(value_of out runs/study)")
listing=$(python "$root/launcher/study.py" "$@" --list_steps true | python "$root/slurm/steps.py")

SITE_LOGS=$study/logs
export SITE_LOGS
mkdir -p "$study/steps"
exec {study_lock}>"$study/steps/.submitting"
flock -n "$study_lock" || { echo "another study.sh is submitting $study" >&2 && exit 1; }

declare -A id=() text=() after=()
order=() submitted=0

# in_queue FILE: whether the job that was submitted for the step is still there (ids begin again on a fresh cluster).
in_queue() {
    local job
    read -r job _ 2>/dev/null <"$study/steps/$1.job" || return 1
    [ "$(squeue -h -j "$job" -o %j 2>/dev/null | head -n 1)" = "colorgan-$1" ] || return 1
    id[$1]=$job
}

# submit_step FILE COMMAND KIND FOLDER RECIPE NAME: after the parents in `after`; a set may be packed in parts first.
submit_step() {
    local file=$1 dependency="" parent parts more=()
    for parent in ${after[$file]}; do [ -z "${id[$parent]:-}" ] || dependency+=":${id[$parent]}"; done
    [ -z "$dependency" ] || more+=(--dependency="afterok$dependency" --kill-on-invalid-dep=yes)
    if [ "$2" = pack ] && [ "$SITE_PACK_PARTS" -gt 1 ] && [ -f "$5" ] && ! grep -q '^corpus: sample' "$5"; then
        parts=$(submit cpu pack.sh "${more[@]}" --array="1-$SITE_PACK_PARTS" -- --config "$5")
        more=(--dependency="afterok:$parts" --kill-on-invalid-dep=yes)
    fi
    id[$file]=$(submit "$3" step.sh --job-name="colorgan-$file" "${more[@]}" -- "$2" "$4" "$6" "${words[@]}")
    echo "${id[$file]} colorgan-$file" >"$study/steps/$file.job"
    submitted=$((submitted + 1))
}

# show PARENT INDENT: the steps whose last parent is PARENT, as a tree.
show() {
    local file children=() branch others
    for file in "${order[@]}"; do
        [ "${after[$file]##* }" != "$1" ] || children+=("$file")
    done
    for file in "${children[@]}"; do
        branch="├── " && [ "$file" != "${children[-1]}" ] || branch="└── "
        others=$(wc -w <<<"${after[$file]}")
        printf '%s%s%s: %s%s\n' "$2" "$branch" "$file" "${text[$file]}" \
            "$([ "$others" -le 1 ] || echo "  (after $((others - 1)) more)")"
        if [ "$branch" = "├── " ]; then show "$file" "$2│   "; else show "$file" "$2    "; fi
    done
}

: >"$study/steps/.order"
while IFS=$'\t' read -r file command kind state folder parents recipe output name; do
    order+=("$file")
    after[$file]=${parents#-}
    printf '%s\t%s\n' "$file" "$output" >>"$study/steps/.order"
    waits="" # what a step builds on is made again: so is the step
    for parent in ${after[$file]}; do waits+=${id[$parent]:-}; done
    if [ "$state" = "done" ] && [ -z "$waits" ]; then
        text[$file]="done"
    elif in_queue "$file"; then
        text[$file]="job ${id[$file]} (in the queue already)"
    else
        submit_step "$file" "$command" "$kind" "${folder#-}" "$recipe" "$name"
        text[$file]="job ${id[$file]}"
    fi
done <<<"$listing"

echo "study -> $study"
show "" ""
echo "$submitted jobs submitted; logs in $SITE_LOGS; how it goes: slurm/status.sh $(printf %q "$study")"
