#!/usr/bin/env bash
# Submit a whole study:  slurm/study.sh STUDY --out DIR
#
#   pack -> pretrain -> consolidate -> fine-tune each task from scratch and from the generator, over seeds
#        -> evaluate -> report
#
# STUDY is a file like those in slurm/studies/, or the name of one: sample, coco_paper, imagenet. Run it again whenever
# you like: what is done or in the queue is left alone, what has failed is submitted again.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
root=${script%/slurm/study.sh}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

usage() { echo "usage: slurm/study.sh STUDY --out DIR   (STUDY: a file, or $(basename -s .env "$root"/slurm/studies/*.env | paste -s -d ' '))" >&2 && exit 2; }
file="" study=""
while [ $# -gt 0 ]; do
    case $1 in
        --out) [ $# -ge 2 ] || usage; study=$2 && shift ;;
        --out=*) study=${1#*=} ;;
        -*) usage ;;
        *) file=$1 ;;
    esac
    shift
done
if [ -z "$file" ] || [ -z "$study" ]; then usage; fi
study=$(realpath -m "$study")
[ -f "$file" ] || file=$root/slurm/studies/$file.env
[ -f "$file" ] || usage
# shellcheck source=slurm/studies/sample.env
. "$(realpath "$file")"

SITE_LOGS=$study/logs
export SITE_LOGS COLORGAN_STEP
mkdir -p "$study/steps"
exec {study_lock}>"$study/steps/.lock"
flock -n "$study_lock" || { echo "another study.sh is submitting $study" >&2 && exit 1; }

declare -A id=() text=() parents=() elements=()
order=() submitted=0

# step NAME "PARENTS" KIND SCRIPT "ARRAY" WORDS: submit it unless it is done or in the queue.
step() {
    local name=$1 after=$2 kind=$3 script=$4 indices=$5 more=() missing=() parent index dependency="" words
    shift 5
    words="${*@Q}"
    order+=("$name")
    parents[$name]=$after elements[$name]=$(wc -w <<<"${indices:-one}")
    for parent in $after; do [ -z "${id[$parent]:-}" ] || dependency+=":${id[$parent]}"; done
    for index in ${indices:-none}; do
        # What a step builds on is made again: so is the step.
        [ -z "$dependency" ] && [ "$(cat "$study/steps/$name${indices:+.$index}.done" 2>/dev/null)" = "$words" ] || missing+=("$index")
    done
    if [ "${#missing[@]}" -eq 0 ]; then
        text[$name]="done"
        return
    fi
    if in_queue "$name" "$script"; then
        text[$name]="job ${id[$name]} (in the queue already)"
        return
    fi
    # The parts of a set are counted by the array: all of them, or none; what is packed is not packed again.
    [ "$script" != pack.sh ] || [ -z "$indices" ] || read -r -a missing <<<"$indices"
    [ -z "$indices" ] || more+=(--array="$(IFS=, && echo "${missing[*]}")")
    [ -z "$dependency" ] || more+=(--dependency="afterok$dependency" --kill-on-invalid-dep=yes)
    COLORGAN_STEP=$(realpath -m "$study/steps/$name")
    id[$name]=$(submit "$kind" "$script" "${more[@]}" -- "$@")
    echo "${id[$name]} colorgan-${script%.sh}" >"$study/steps/$name.job"
    text[$name]="job ${id[$name]}${indices:+ [$(IFS=, && echo "${missing[*]}")]}"
    submitted=$((submitted + 1))
}

# in_queue NAME SCRIPT: whether the job that was submitted for it is still there (ids begin again on a fresh cluster).
in_queue() {
    local job
    read -r job _ 2>/dev/null <"$study/steps/$1.job" || return 1
    [ "$(squeue -h -j "$job" -o %j 2>/dev/null | head -n 1)" = "colorgan-${2%.sh}" ] || return 1
    id[$1]=$job
}

# show PARENT INDENT: the steps whose last parent is PARENT, as a tree.
show() {
    local name last="" children=() branch
    for name in "${order[@]}"; do
        last=${parents[$name]##* }
        [ "${last:-top}" != "$1" ] || children+=("$name")
    done
    for name in "${children[@]}"; do
        branch="├── " && [ "$name" != "${children[-1]}" ] || branch="└── "
        last=${parents[$name]}
        [[ $last == *" "* ]] && last="  (also after ${last% *})" || last=""
        printf '%s%s%s: %s%s\n' "$2" "$branch" "$name" "${text[$name]}" "$last"
        if [ "$branch" = "├── " ]; then show "$name" "$2│   "; else show "$name" "$2    "; fi
    done
}

# --- The chain
packed() { echo "pack_$1$([ "$SITE_PACK_PARTS" -le 1 ] || echo _merge)"; }
for set in $SETS; do
    declare -n words_of="pack_$set"
    if [ "$SITE_PACK_PARTS" -gt 1 ]; then
        step "pack_$set" "" cpu pack.sh "$(seq -s ' ' "$SITE_PACK_PARTS")" "${words_of[@]}" --out "$study/shards/$set"
        step "pack_${set}_merge" "pack_$set" cpu pack.sh "" --merge --out "$study/shards/$set"
    else
        step "pack_$set" "" cpu pack.sh "" "${words_of[@]}" --out "$study/shards/$set"
    fi
    unset -n words_of
done
shards() { echo "$study/shards/$1"; }

step pretrain "$(packed pretrain_val) $(packed pretrain_train)" pretrain pretrain.sh "" "${pretrain[@]}" \
    --data.train "$(shards pretrain_train)" --data.val "$(shards pretrain_val)" --run "$study/pretrain"
step consolidate pretrain cpu consolidate.sh "" --run "$study/pretrain"
step evaluate_generator consolidate gpu evaluate.sh "" --model "$study/pretrain/generator" \
    --data "$(shards pretrain_val)" --out "$study/pretrain/evaluation"
runs=("$study/pretrain" "$study/pretrain/evaluation") scored=evaluate_generator
for task in $TASKS; do
    declare -n sets="${task}_sets" task_words="${task}_words"
    read -r train val <<<"$sets"
    for init in scratch generator; do
        declare -n init_words="${task}_$init"
        start=scratch after="$(packed "$val") $(packed "$train")"
        if [ "$init" = generator ]; then start=$study/pretrain/generator after+=" consolidate"; fi
        folder=$study/$task/$init/seed-%a
        step "${task}_$init" "$after" gpu finetune.sh "$SEEDS" "${task_words[@]}" "${init_words[@]}" --init "$start" \
            --data.train "$(shards "$train")" --data.val "$(shards "$val")" --seed %a --run "$folder"
        step "evaluate_${task}_$init" "${task}_$init" gpu evaluate.sh "$SEEDS" --model "$folder/model" \
            --data "$(shards "$val")" --out "$folder/evaluation"
        scored="evaluate_${task}_$init $scored"
        for seed in $SEEDS; do runs+=("$study/$task/$init/seed-$seed"{,/evaluation}); done
        unset -n init_words
    done
    unset -n sets task_words
done
step report "$scored" cpu report.sh "" --out "$study/report" "${runs[@]}"

for name in "${order[@]}"; do echo "$name ${elements[$name]}"; done >"$study/steps/.order"
echo "study $(basename "$file" .env) -> $study"
show top ""
echo "$submitted jobs submitted; logs in $SITE_LOGS; how it goes: slurm/status.sh $(printf %q "$study")"
