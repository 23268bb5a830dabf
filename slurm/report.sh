#!/usr/bin/env bash
#SBATCH --job-name=colorgan-report
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#
# Put runs side by side:  slurm/report.sh --out DIR RUN...
# The words are those of launcher/report.py.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
[[ $0 != */slurm_script ]] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
root=${script%%/slurm/report.sh*}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

begin report cpu "$@"
run_alone report.py
finish
