#!/usr/bin/env bash
#SBATCH --job-name=colorgan-evaluate
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#
# Score a model folder on one node:  slurm/evaluate.sh --model DIR --data DIR --out DIR
# The words are those of launcher/evaluate.py; in an array %a stands for the index.
#
# Submitted this way the job has the resources that slurm/site.env names; `sbatch [OPTIONS] slurm/evaluate.sh ...` works too,
# with the resources that OPTIONS name.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
[[ $0 != */slurm_script ]] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
root=${script%%/slurm/evaluate.sh*}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

begin evaluate gpu "$@"
run_on_nodes evaluate.py
finish
