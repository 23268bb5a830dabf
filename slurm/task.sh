#!/usr/bin/env bash
# One task on one node, started by srun (slurm/common.sh): `accelerate launch` for the ranks of this node.
set -euo pipefail
{ # read as a whole before it runs: an update of the project must not change a job under way

# The ranks answer these; launchers in between stay (a signal ignored here is ignored in what is started from here
# until it says otherwise, and the ranks do).
trap '' USR2 TERM
export PET_SIGNALS_TO_HANDLE=SIGINT # of torchrun, which accelerate runs

scratch=""
if [ -n "${COLORGAN_SCRATCH:-}" ]; then
    mkdir -p "$COLORGAN_SCRATCH"
    # One job of a node at a time: a neighbor must not find this folder before its lock is held.
    exec {gate}<"$COLORGAN_SCRATCH"
    flock -w 60 "$gate" || true
    scratch=$(mktemp -d "$COLORGAN_SCRATCH/colorgan-scratch-XXXXXXXX")
    exec {lock}>"$scratch/.lock"
    flock "$lock" # held as long as the folder is in use; what killed jobs have left has no holder
    # Only folders with such a lock: what else lies there is the users' own.
    for left in "$COLORGAN_SCRATCH"/colorgan-scratch-????????; do
        if [ "$left" != "$scratch" ] && [ -O "$left" ] && [ -f "$left/.lock" ] && flock -n "$left/.lock" true 2>/dev/null; then
            rm -rf "$left"
        fi
    done
    exec {gate}<&-
    trap 'rm -rf "$scratch"' EXIT
    export COLORGAN_STAGE_DIR=$scratch COLORGAN_STAGE_GB=${COLORGAN_SCRATCH_GB:-}
fi

world=$((COLORGAN_NODES * COLORGAN_RANKS_PER_NODE))
words=(--num_processes "$world" --num_machines "$COLORGAN_NODES" --machine_rank "$SLURM_NODEID")
words+=(--main_process_ip "$COLORGAN_ADDRESS" --main_process_port "$COLORGAN_PORT" --rdzv_backend static)
threads=$((${SLURM_CPUS_PER_TASK:-1} / COLORGAN_RANKS_PER_NODE))
words+=(--mixed_precision no --dynamo_backend no --num_cpu_threads_per_process "$((threads > 0 ? threads : 1))")
if [ "$COLORGAN_DEVICE" = cpu ]; then export ACCELERATE_USE_CPU=true; fi
if [ "$COLORGAN_PROFILE" != ddp ]; then
    profile=$COLORGAN_ROOT/launcher/configs/accelerate/$COLORGAN_PROFILE$([ "$COLORGAN_DEVICE" = gpu ] || echo _cpu).yaml
    words+=(--config_file "$profile" --deepspeed_multinode_launcher standard) # standard: ranks started here, not by ssh
elif [ "$world" -gt 1 ]; then
    words+=(--multi_gpu) # also on CPUs: what accelerate calls MULTI_CPU starts one process only
elif [ "$COLORGAN_DEVICE" = cpu ]; then
    words+=(--cpu)
fi
echo "[node $(hostname)] task $SLURM_NODEID, ranks $((SLURM_NODEID * COLORGAN_RANKS_PER_NODE)) to $((SLURM_NODEID * COLORGAN_RANKS_PER_NODE + COLORGAN_RANKS_PER_NODE - 1)), CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-(unset)}${scratch:+, scratch $scratch}"
status=0
accelerate launch "${words[@]}" --no_python bash "$COLORGAN_ROOT/slurm/rank.sh" python "$@" || status=$?
exit "$status"
}
