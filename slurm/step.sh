#!/usr/bin/env bash
#SBATCH --job-name=colorgan-step
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#
# One step of a study, submitted by slurm/study.sh:  step.sh COMMAND FOLDER NAME WORDS
# COMMAND is the step's command, FOLDER its run folder ("" without one), NAME its name in the study, and WORDS are those
# of launcher/study.py.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
[[ $0 != */slurm_script ]] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
root=${script%%/slurm/step.sh*}
# shellcheck source=slurm/common.sh
. "$root/slurm/common.sh"

if [[ $0 != */slurm_script ]] || [ $# -lt 3 ]; then
    echo "slurm/study.sh submits the steps of a study" >&2
    exit "$EXIT_MISTAKE"
fi
step_command=$1 step_folder=$2 step_name=$3
shift 3
begin step step "$@"
run_step "$step_command" "$step_name"
finish
