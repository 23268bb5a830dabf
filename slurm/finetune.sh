#!/usr/bin/env bash
#SBATCH --job-name=colorgan-finetune
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#
# Fine-tune on one node:  slurm/finetune.sh --task classify --init RUN/generator --data.train DIR --run DIR ...
# The words are those of launcher/finetune.py. In an array %a stands for the index:
#   sbatch --array=0-2 slurm/finetune.sh --task segment --init scratch --seed %a --run runs/segment-%a ...
#
# Submitted this way the job has the resources that slurm/site.env names; `sbatch [OPTIONS] slurm/finetune.sh ...` works too,
# with the resources that OPTIONS name.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
[[ $0 != */slurm_script ]] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
root=${script%%/slurm/finetune.sh*}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

begin finetune gpu "$@"
run_on_nodes finetune.py
finish
