# shellcheck shell=bash
# What the batch scripts share: the site's settings, submitting, one task a node, signals, requeueing, the log.
# Sourced, with `root` (the project's folder) set, by the scripts in slurm/; it does nothing by itself.
#
#   begin COMMAND KIND "$@"   outside a job: submit this script with the site's options, and exit;
#                          inside: settings, environment, header of the log. Leaves the command's words in `words`.
#   run_on_nodes           one srun task a node, each with `accelerate launch` for its ranks
#   run_alone              one process on this node
#   finish                 what it came to: done, requeued, or failed with the reason

# shellcheck source=slurm/site.env
. "${COLORGAN_SITE:-$root/slurm/site.env}"

# Exit statuses of the commands (ExitStatus in colorgan/errors.py).
EXIT_MISTAKE=2
EXIT_STOPPED=75 # by a signal, after saving
FINAL=(2 65 66 78) # rerunning the command fails the same way
declare -A MEANING=([0]='done' [2]="a mistake" [65]="NaN or infinity in a loss" [66]="the run started from other weights"
    [69]="another rank was lost" [74]="a checkpoint could not be written" [75]="stopped and saved" [76]="a rank hung"
    [78]="the run folder holds another recipe" [137]=killed)
RESEND_S=5      # a signal that comes before a rank listens is lost

say() { printf '[slurm %s] %s\n' "$(date '+%F %T')" "$*"; }

# What scontrol calls this job. The last element of an array has the id of the whole array, which would be shown and
# requeued as such: its siblings would be ended in the middle of their saves.
own_job=${SLURM_JOB_ID:-}
[ -z "$own_job" ] || [ "$own_job" != "${SLURM_ARRAY_JOB_ID:-}" ] || own_job+=_$SLURM_ARRAY_TASK_ID

# job_field NAME: one field of this job as scontrol shows it, blanks and all (the line's last field).
job_field() { scontrol show job "$own_job" 2>/dev/null | sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" | head -n 1; }
job_line() { scontrol show job "$own_job" 2>/dev/null | sed -n "s/^ *$1=//p" | head -n 1; }

# with_home PATH: the command takes a leading ~ for the home folder, which the shell has left in --run=~/x or a recipe.
with_home() { case $1 in \~/*) printf '%s' "$HOME${1#\~}" ;; *) printf '%s' "$1" ;; esac }

# word_of KEY: the value that `words` give --KEY by any of its names, as the command reads them: the last one counts.
word_of() {
    local index word name value=""
    for index in "${!words[@]}"; do
        word=${words[index]}
        [[ $word == --* ]] || continue
        name=${word#--} name=${name%%=*} name=${name//-/_}
        case $name in run_dir | output_dir) name=run ;; esac # the aliases in colorgan/config/recipe.py
        [ "$name" = "$1" ] || continue
        if [[ $word == *=* ]]; then value=${word#*=}; else value=${words[index + 1]:-}; fi
    done
    with_home "$value"
}

# value_of KEY DEFAULT: the value that `words` give --KEY, else the recipe's (a key at its left margin), else DEFAULT.
value_of() {
    local recipe value plain="[^#[:space:]][^[:space:]]*" # a # begins a comment only behind a blank
    recipe=$(word_of config)
    [ -f "$recipe" ] || recipe=$root/launcher/configs/${recipe%.yaml}.yaml
    value=$(word_of "$1")
    if [ -z "$value" ] && [ -f "$recipe" ]; then
        # In quotes, or words up to a comment. No aliases: the command refuses them in a recipe.
        value=$(sed -n -E "s/^$1 *:[[:space:]]+(\"([^\"]*)\"|'([^']*)'|($plain([[:space:]]+$plain)*)).*/\2\3\4/p" "$recipe" | head -n 1)
    fi
    with_home "${value:-$2}"
}

# site_options KIND: fills `options` with the site's words for sbatch; KIND is pretrain, gpu (one node) or cpu.
site_options() {
    local partition=$SITE_PARTITION
    options=(--output="$SITE_LOGS/%x-%j.log" --open-mode=append --requeue --signal="B:USR2@$SITE_SAVE_SECONDS")
    if [ "$1" = cpu ]; then
        partition=${SITE_CPU_PARTITION:-$SITE_PARTITION}
        options+=(--nodes=1 --ntasks-per-node=1 --time="$SITE_CPU_TIME" --cpus-per-task="$SITE_CPU_CPUS")
    else
        options+=(--ntasks-per-node=1 --time="$SITE_TIME" --cpus-per-task="$SITE_CPUS_PER_NODE")
        [ "$1" = pretrain ] && options+=(--nodes="$SITE_NODES") || options+=(--nodes=1)
        [ "$SITE_GPUS_PER_NODE" = 0 ] || options+=(--gpus-per-node="$SITE_GPUS_PER_NODE")
        [ -z "$SITE_MEMORY" ] || options+=(--mem="$SITE_MEMORY")
    fi
    [ -z "$partition" ] || options+=(--partition="$partition")
    [ -z "$SITE_ACCOUNT" ] || options+=(--account="$SITE_ACCOUNT")
    [ -z "$SITE_QOS" ] || options+=(--qos="$SITE_QOS")
    options+=("${SITE_EXTRA[@]}")
}

# submit KIND SCRIPT [SBATCH WORDS] -- [COMMAND WORDS]: submits, prints the job's id.
submit() {
    local kind=$1 script=$2 more=() options
    shift 2
    while [ "${1:-}" != -- ]; do more+=("$1") && shift; done
    shift
    site_options "$kind"
    mkdir -p "$SITE_LOGS"
    [[ " ${more[*]} " != *" --array="* ]] || options+=(--output="$SITE_LOGS/%x-%A_%a.log")
    env -u SLURM_CPUS_PER_TASK sbatch --parsable --job-name="colorgan-$(basename "$script" .sh)" \
        "${options[@]}" "${more[@]}" "$root/slurm/$script" "$@" | cut -d ';' -f 1
}

# find_python: the project's environment comes first in PATH.
find_python() {
    local venv=${SITE_VENV:-$root/.venv}
    [ ! -d "$venv/bin" ] || PATH=$venv/bin:$PATH
    export PATH
}

# help_instead COMMAND WORDS: with --help among the words, print the script's and the command's help and exit.
help_instead() {
    [[ " ${*:2} " == *" --help "* || " ${*:2} " == *" -h "* ]] || return 0
    sed -n '/^# /,/^[^#]/s/^# \{0,1\}//p' "$root/slurm/$1.sh" | grep -v '^shellcheck'
    find_python
    exec python "$root/launcher/$1.py" "${@:2}"
}

# seconds_of LIMIT: a time limit of sbatch (minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s) in seconds; nothing for none.
seconds_of() {
    local days=0 clock=$1 fields
    [[ $clock =~ ^[0-9]+(-[0-9]+)?(:[0-9]+){0,2}$ ]] || return 0
    if [[ $clock == *-* ]]; then days=${clock%%-*} clock=${clock#*-}; fi
    IFS=: read -r -a fields <<<"$clock"
    if [[ $1 == *-* ]]; then
        echo $((days * 86400 + 10#${fields[0]} * 3600 + 10#${fields[1]:-0} * 60 + 10#${fields[2]:-0}))
    elif ((${#fields[@]} == 3)); then
        echo $((10#${fields[0]} * 3600 + 10#${fields[1]} * 60 + 10#${fields[2]}))
    else
        echo $((10#${fields[0]} * 60 + 10#${fields[1]:-0}))
    fi
}

# check_time SECONDS: refuse a time limit in which no checkpoint can be written after the signal.
check_time() {
    [ -z "$1" ] || [ "$1" -gt "$SITE_SAVE_SECONDS" ] && return 0
    echo "the time limit of $1 s is not longer than SITE_SAVE_SECONDS ($SITE_SAVE_SECONDS), the time kept for saving: the job would be asked to stop as it starts. Raise SITE_TIME (sbatch --time), or lower SITE_SAVE_SECONDS" >&2
    exit "$EXIT_MISTAKE"
}

begin() {
    command=$1 kind=$2
    shift 2
    words=("$@")
    if [[ $0 != */slurm_script ]]; then
        local id
        help_instead "$command" "$@"
        [ "$kind" = cpu ] || check_time "$(seconds_of "$SITE_TIME")"
        id=$(submit "$kind" "$command.sh" -- "$@")
        echo "job $id: $command; log $(realpath -m "$SITE_LOGS")/colorgan-$command-$id.log"
        exit 0
    fi
    # %a in a word is the index in the array: --seed %a --run runs/seed-%a
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || words=("${words[@]//%a/$SLURM_ARRAY_TASK_ID}")
    attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
    state=$(realpath -m "$SITE_LOGS")/.state/${SLURM_CLUSTER_NAME:-cluster}-$SLURM_JOB_ID
    [ "$attempt" -gt 1 ] || rm -rf "$state" # ids begin again where a cluster is set up anew
    mkdir -p "$state"
    rm -f "$state"/rank-*
    local default=""
    case $command in
        pretrain | consolidate) default=runs/pretrain ;;
        finetune) default=runs/finetune ;;
    esac
    run=${step_folder-$(value_of run "$(value_of out "$default")")}
    prepare_environment
    header
    [ "$kind" = cpu ] || check_time "$(seconds_of "$(job_field TimeLimit)")"
    count_attempts
    note started
}

prepare_environment() {
    if [ "${#SITE_MODULES[@]}" -gt 0 ]; then module load "${SITE_MODULES[@]}"; fi
    find_python
    export PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL
    export COLORGAN_ROOT=$root COLORGAN_STATE=$state COLORGAN_SCRATCH=$SITE_SCRATCH COLORGAN_SCRATCH_GB=$SITE_SCRATCH_GB
    if ((${#SITE_CONTAINER[@]} == 0)) && ! command -v python >/dev/null; then
        say "no python on this node: set SITE_VENV, SITE_MODULES or SITE_CONTAINER in slurm/site.env"
        exit "$EXIT_MISTAKE"
    fi
}

header() {
    say "job $SLURM_JOB_ID ($command), attempt $attempt, on ${SLURM_JOB_NUM_NODES:-1} node(s): $SLURM_JOB_NODELIST"
    [ -z "${step_name:-}" ] || say "step     $step_name"
    say "command  $command ${words[*]@Q}"
    say "log      $(job_line StdOut)  (all attempts)"
    [ -z "$run" ] || say "folder   $(realpath -m "$run")  (log.jsonl, tensorboard/, pictures/, checkpoints/ where the command writes them)"
    [ -z "$SITE_SCRATCH" ] || say "scratch  $SITE_SCRATCH on each node"
    if [ "$kind" = pretrain ] && [ "${SLURM_JOB_NUM_NODES:-1}" != "$SITE_NODES" ]; then
        say "note: site.env asks for $SITE_NODES node(s); this job was submitted for ${SLURM_JOB_NUM_NODES:-1}. With the site's options: slurm/$command.sh ... (without sbatch)"
    fi
}

# What tells that an attempt has brought something: the newest checkpoint, or the number of shards.
progress() {
    local found=()
    [ -z "$run" ] || mapfile -t found < <(find "$run" "$run/checkpoints" -maxdepth 1 \( -name 'images-*' -o -name '*.tar' \) -printf '%f\n' 2>/dev/null | sort)
    if ((${#found[@]})); then printf '%s %s' "${#found[@]}" "${found[-1]}"; else printf '0 nothing'; fi
}

# Stop when too many attempts in a row have brought nothing, whatever ended them.
count_attempts() {
    local idle=0 before=""
    [ ! -f "$state/attempts" ] || { read -r idle && read -r before; } <"$state/attempts"
    if [ "$attempt" -gt 1 ] && [ "$before" = "$(progress)" ]; then idle=$((idle + 1)); else idle=0; fi
    printf '%s\n%s\n' "$idle" "$(progress)" >"$state/attempts"
    idle_attempts=$idle
    if [ "$idle" -ge "$SITE_MAX_IDLE_ATTEMPTS" ]; then
        fail 1 "$idle attempts in a row without a new checkpoint (SITE_MAX_IDLE_ATTEMPTS): not requeued again"
    fi
}

# note EVENT [REASON]: a line in the run's list of jobs, which status.sh reads.
note() {
    [ -n "$run" ] || return 0
    mkdir -p "$run/slurm"
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date +%s)" "${SLURM_CLUSTER_NAME:-}" "$SLURM_JOB_ID" "$command" "$attempt" "$1" "${2:-}" \
        >>"$run/slurm/jobs.tsv"
}

fail() {
    say "FAILED: $2"
    note failed "$2"
    exit "$1"
}

requeue() {
    local job_state
    job_state=$(job_field JobState)
    if [ "$job_state" != RUNNING ]; then
        say "this attempt ends ($1); the job is $job_state, so SLURM decides what becomes of it"
        note ended "$job_state"
        exit "$EXIT_STOPPED"
    fi
    note requeued "$1"
    say "requeued: $1"
    scontrol requeue "$own_job" || fail "$EXIT_STOPPED" "SLURM would not requeue the job; the same command goes on"
    exit "$EXIT_STOPPED"
}

# --- Running a command

# A port for this job on the first node: held by a lock for the job's life, so that two jobs never share one.
choose_port() {
    local first offset
    first=$(($(printf '%s' "${SLURM_CLUSTER_NAME:-}$SLURM_JOB_ID" | cksum | cut -d ' ' -f 1) % 10000))
    for offset in {0..999}; do
        port=$((20000 + (first + offset) % 10000))
        # Two statements: a redirection that fails in `exec` alone would end the script.
        { : >>"/tmp/colorgan-port-$port.lock"; } 2>/dev/null || continue
        exec {port_lock}>>"/tmp/colorgan-port-$port.lock"
        if flock -n "$port_lock" && ! (: <"/dev/tcp/$address/$port") 2>/dev/null; then return; fi
        exec {port_lock}>&-
    done
    fail 1 "no free port between 20000 and 29999 on $address"
}

# The address of the node list's first node, or of the site's network interface on it (this script runs there).
choose_address() {
    address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    [ -n "$SITE_INTERFACE" ] || return 0
    export NCCL_SOCKET_IFNAME=$SITE_INTERFACE GLOO_SOCKET_IFNAME=$SITE_INTERFACE
    address=$(ip -o -4 addr show dev "$SITE_INTERFACE" 2>/dev/null | awk '{sub("/.*", "", $4); print $4; exit}') || true
    [ -n "$address" ] || fail "$EXIT_MISTAKE" "network interface $SITE_INTERFACE has no address here; correct SITE_INTERFACE"
}

# prepare_ranks COMMAND: fills `ranks` with the words that start the ranks of a command on all nodes of the job.
prepare_ranks() {
    local gpus=${SLURM_GPUS_ON_NODE:-0}
    local device=${SITE_DEVICE:-$([ "$gpus" -gt 0 ] && echo gpu || echo cpu)}
    export COLORGAN_NODES=${SLURM_JOB_NUM_NODES:-1} COLORGAN_DEVICE=$device
    export COLORGAN_RANKS_PER_NODE=${SITE_RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
    export COLORGAN_PROFILE=ddp
    case $1 in pretrain | finetune) COLORGAN_PROFILE=$SITE_PROFILE ;; esac
    choose_address
    choose_port
    export COLORGAN_ADDRESS=$address COLORGAN_PORT=$port COLORGAN_JOIN_TIMEOUT_S=$SITE_JOIN_SECONDS
    say "ranks    $((COLORGAN_NODES * COLORGAN_RANKS_PER_NODE)) = $COLORGAN_NODES node(s) x $COLORGAN_RANKS_PER_NODE, $gpus GPU(s) a node, on the $device, $COLORGAN_PROFILE; they meet at $address:$port"
    ranks=(srun --nodes="$COLORGAN_NODES" --ntasks="$COLORGAN_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1)
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || ranks+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    ranks+=("${SITE_CONTAINER[@]}" bash "$root/slurm/task.sh")
}

# run_on_nodes SCRIPT: `accelerate launch SCRIPT words` over all nodes of the job.
run_on_nodes() {
    prepare_ranks "$command"
    save_signal=USR2
    supervise "${ranks[@]}" "$root/launcher/$1" "${words[@]}"
}

# run_step COMMAND NAME: one step of a study. launcher/study.py runs it and keeps its marks; training steps start
# their ranks by slurm/ranks.sh.
run_step() {
    words+=(--step "$2")
    case $1 in
        pretrain | finetune | probe)
            prepare_ranks "$1"
            # In a container there is no srun: the ranks start where study.py runs.
            if ((${#SITE_CONTAINER[@]} > 0)); then
                [ "$COLORGAN_NODES" -eq 1 ] || fail "$EXIT_MISTAKE" "a study in a container trains on one node: set SITE_NODES=1"
                export SLURM_NODEID=0
                ranks=(bash "$root/slurm/task.sh")
            fi
            printf 'ranks=(%s)\n' "${ranks[*]@Q}" >"$state/ranks.env"
            words+=(--launch "bash $(printf %q "$root/slurm/ranks.sh")")
            ;;
    esac
    run_alone study.py
}

# run_alone SCRIPT: one process on this node. What it has finished stays; told to stop, it is simply started again.
run_alone() {
    save_signal=TERM
    supervise setsid "${SITE_CONTAINER[@]}" bash "$root/slurm/rank.sh" python "$root/launcher/$1" "${words[@]}"
}

# Run a command; on SIGUSR2 (the time limit is near, or pre-emption) or SIGTERM pass it on until the command ends.
supervise() {
    local interrupted=0
    signal="" signal_at="" exit_code=0 watcher=""
    trap 'interrupted=1; [ -n "$signal" ] || signal=USR2' USR2
    trap 'interrupted=1; signal=TERM' TERM
    "$@" </dev/null &
    local step=$!
    while :; do
        interrupted=0
        wait "$step" && exit_code=0 || exit_code=$?
        ((interrupted)) || break
        if [ -z "$watcher" ]; then
            signal_at=$(date +%s.%N)
            say "SIG$signal: asking the ranks to save and stop"
            pass_on "$([ "$save_signal" = USR2 ] || printf -- -)$step" & # srun passes it on; else to the whole group
            watcher=$!
        fi
    done
    [ -z "$watcher" ] || kill "$watcher" 2>/dev/null || true
    trap - USR2
}

# pass_on PID|-GROUP: the signal, again and again; at the last moment before the time limit say so and requeue as it stands.
pass_on() {
    local end left
    trap - USR2 TERM
    end=$(date -d "$(job_field EndTime)" +%s 2>/dev/null) || end=""
    while kill -s "$save_signal" -- "$1" 2>/dev/null; do
        sleep "$RESEND_S"
        left=$((${end:-9999999999} - $(date +%s)))
        if [ "$left" -le "$SITE_LAST_MOMENT_SECONDS" ]; then
            say "NOT SAVED: $left s before the time limit no checkpoint has been written since the signal; what came after $(progress | cut -d ' ' -f 2) will be repeated. Raise SITE_SAVE_SECONDS ($SITE_SAVE_SECONDS), or set output.save_every_images lower"
            (requeue "the time limit came before the checkpoint") && :
            return
        fi
    done
}

# finish: judge by what the ranks have left behind, then end the job.
finish() {
    local statuses reason="" status
    statuses=" $(cat "$state"/rank-* 2>/dev/null | sort -n | uniq | tr '\n' ' ' || true)" # none where a node died
    for status in $statuses; do reason+="${reason:+, }${MEANING[$status]:-status $status}"; done
    reason=${reason:-the ranks ended without a word}
    if [ "$exit_code" -eq 0 ] && [ "$statuses" = " 0 " ]; then done_now; fi
    if [ "$exit_code" -eq 0 ] && [[ $statuses == *" $EXIT_STOPPED "* ]]; then requeue "$(saved_text)"; fi
    for status in "${FINAL[@]}"; do
        [[ $statuses != *" $status "* ]] ||
            fail "$status" "${MEANING[$status]}, told above; the same again would fail the same way, so it is not requeued"
    done
    if [ -n "$signal" ] && [ "$save_signal" = TERM ]; then requeue "SIG$signal; what is finished is kept"; fi
    if [ -n "$signal" ]; then requeue "$(saved_text) ($reason)"; fi
    if [ "$((idle_attempts + 1))" -ge "$SITE_MAX_IDLE_ATTEMPTS" ] && [ "$(progress)" = "$(sed -n 2p "$state/attempts")" ]; then
        fail 1 "$reason; $((idle_attempts + 1)) attempts in a row without a new checkpoint (SITE_MAX_IDLE_ATTEMPTS): not requeued"
    fi
    requeue "failed ($reason); goes on from the last checkpoint"
}

# saved_text: whether the signal led to a checkpoint, and how fast.
saved_text() {
    local saved_at newest
    read -r saved_at newest < <(find "$run/checkpoints" -maxdepth 1 -name 'images-*' -printf '%T@ %f\n' 2>/dev/null | sort -n | tail -n 1) || true
    if [ -n "$newest" ] && awk "BEGIN { exit !($saved_at > ${signal_at:-0}) }"; then
        printf '%s saved' "$newest"
        [ -z "$signal" ] || awk "BEGIN { printf \" %.1f s after SIG$signal\", $saved_at - $signal_at }"
    else
        printf 'SIG%s: NOT SAVED, no checkpoint has been written since; what came after %s will be repeated' "${signal:-?}" "$(progress | cut -d ' ' -f 2)"
    fi
}

done_now() {
    note 'done'
    rm -rf "$state"
    say "done: ${step_name:-$command}${run:+, $run}"
    exit 0
}
