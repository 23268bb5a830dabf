#!/usr/bin/env bash
#SBATCH --job-name=colorgan-pack
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@60
#
# Pack a corpus:  slurm/pack.sh --corpus coco --root COCO --split train --out DIR [...]
# The words are those of launcher/pack.py. With SITE_PACK_PARTS=8 this submits an array of 8 that pack side by side
# and a job that merges them. By hand:
#   sbatch --array=1-8 slurm/pack.sh --corpus ... --out DIR   and, when all are done,   sbatch slurm/pack.sh --merge --out DIR
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
[[ $0 != */slurm_script ]] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
root=${script%%/slurm/pack.sh*}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

if [[ $0 != */slurm_script && " $* " != *" --merge "* && $SITE_PACK_PARTS -gt 1 ]]; then
    words=("$@")
    parts=$(submit cpu pack.sh --array="1-$SITE_PACK_PARTS" -- "$@")
    merge=$(submit cpu pack.sh --dependency="afterok:$parts" --kill-on-invalid-dep=yes -- --merge --out "$(value_of out "")")
    echo "job $parts: pack, $SITE_PACK_PARTS parts; then job $merge: merge; logs in $(realpath -m "$SITE_LOGS")"
    exit 0
fi
begin pack cpu "$@"
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    # Parts count from 1; the array may count from 0.
    words+=(--part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT")
fi
[[ " ${words[*]} " == *" --workers"* || " ${words[*]} " == *" --merge "* ]] || words+=(--workers "${SLURM_CPUS_PER_TASK:-1}")
run_alone pack.py
finish
