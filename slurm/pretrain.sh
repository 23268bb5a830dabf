#!/usr/bin/env bash
#SBATCH --job-name=colorgan-pretrain
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#
# Pretrain on one or more nodes:  slurm/pretrain.sh [--config RECIPE] [--key.sub VALUE ...]
# The words are those of launcher/pretrain.py. Near the time limit, and when pre-empted, the run saves, is requeued and
# goes on in the same folder and the same log.
#
# Submitted this way the job has the resources that slurm/site.env names; `sbatch [OPTIONS] slurm/pretrain.sh ...` works too,
# with the resources that OPTIONS name.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
[[ $0 != */slurm_script ]] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
root=${script%%/slurm/pretrain.sh*}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

begin pretrain pretrain "$@"
run_on_nodes pretrain.py
finish
