#!/usr/bin/env bash
#SBATCH --job-name=colorgan-consolidate
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#
# Turn a checkpoint into a generator folder:  slurm/consolidate.sh --run RUN
# The words are those of launcher/consolidate.py.
#
# Submitted this way the job has the resources that slurm/site.env names; `sbatch [OPTIONS] slurm/consolidate.sh ...` works too,
# with the resources that OPTIONS name.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
[[ $0 != */slurm_script ]] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
root=${script%%/slurm/consolidate.sh*}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

begin consolidate cpu "$@"
run_alone consolidate.py
finish
