#!/usr/bin/env bash
# How a run or a study goes:  slurm/status.sh DIR
# DIR is a run folder, or the folder of a study. Reads what is on disk and asks SLURM for the queue.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
root=${script%/slurm/status.sh}
# shellcheck source=slurm/site.env
. "${COLORGAN_SITE:-$root/slurm/site.env}"
if [ $# -ne 1 ] || [ ! -d "$1" ]; then
    echo "usage: slurm/status.sh DIR   (a run folder, or the folder of a study)" >&2
    exit 2
fi
python=${SITE_VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$root/slurm/status.py" "$1"
