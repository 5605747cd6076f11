# Sourced by the batch scripts in this folder: run a step that can be told to stop, and go on with it in a later job.
#
# The job is told by USR1 that its time is running out (#SBATCH --signal=B:USR1@...): the step is told to stop at
# its next chunk, and the job goes back into the queue, under its own number. So it does after the failure of a
# node. A job that failed by itself, had bad input, or was cancelled does not.

set -euo pipefail
. "$MPIIMG_HOME/slurm/env.sh"

say() { printf '%s\n' "${SLURM_JOB_NAME:-mpiimg}: $*" >&2; }

# refuse MESSAGE: bad usage or a job that cannot do it, before any work.
refuse() {
    say "error: $*"
    exit 2
}

# SLURM itself tells the steps of a job that is cancelled.
told=
trap 'told=USR1; say "told that the time limit is near: stopping"; scancel --signal=USR1 "$SLURM_JOB_ID" || true' USR1
trap 'told=TERM; say "cancelled: stopping"' TERM

# run COMMAND...: in the background, since a shell that waits for a program hears no signal. Sets `status`.
run() {
    local step record
    # Told while it planned, or between two steps: there is no time for another.
    [ -z "$told" ] || { status=75 && return; }
    record=$(mktemp)
    # bash may lose the status of what ends while it hears a signal.
    (
        code=0
        "$@" || code=$?
        echo $code >"$record"
    ) &
    step=$!
    while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done
    status=$(cat "$record")
    status=${status:-143}
    rm -f "$record"
}

# srun_tool RANKS COMMAND...: start a tool on so many ranks of this job. Sets `status`.
#
# Code of a user, or of a library, may end a process with any status. What a run says itself is believed: it is given
# a word, MPIIMG_RUN, and asked by that how it ended.
runs=0
srun_tool() {
    local ranks=$1
    shift
    export MPIIMG_RUN="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.$((runs += 1)).$(date +%s%N)"
    # shellcheck disable=SC2086  # options are words of their own
    run srun --ntasks="$ranks" --mpi="$MPIIMG_SRUN_MPI" $MPIIMG_SRUN_OPTIONS "$@"
    case $status in
    # A run that was told to stop before it had a folder says nothing.
    75) [ "$told" = USR1 ] || "$@" --ended=75 || status=1 ;;
    0 | 3) "$@" --ended="$status" || status=1 ;;
    esac
}

# A node that is gone cannot start a step.
nodes_answer() {
    timeout 120 srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --mpi=none true 2>/dev/null
}

# end_job: after a step. Ends the job with the status of the step, or lets it go on later.
end_job() {
    local why='' failed=0 requeued=${SLURM_RESTART_COUNT:-0}
    case $status in
    0 | 2 | 3) exit "$status" ;;
    esac
    [ "$told" != TERM ] || exit "$status"
    # Where one rank leaves before the others, SLURM_KILL_BAD_EXIT makes the status that of a killed step.
    if [ "$status" = 75 ] || { [ "$told" = USR1 ] && [ "$status" -gt 128 ]; }; then
        why="stopped before its time limit"
    elif ! nodes_answer; then
        why="a node failed"
    else
        exit "$status"
    fi
    if [ "$requeued" -ge "$MPIIMG_REQUEUES" ]; then
        say "$why; already requeued $requeued times (MPIIMG_REQUEUES): submit it again, and it goes on"
        exit "$status"
    fi
    say "$why; going back into the queue, to go on from there"
    # Requeuing ends this script, and scontrol before it can answer: what a signal ends has not been refused.
    trap 'told=TERM' TERM
    scontrol requeue "$SLURM_JOB_ID" || failed=$?
    [ "$failed" = 0 ] || [ "$failed" -gt 128 ] || [ "$told" = TERM ] ||
        say "not requeued by scontrol; where SLURM does not, either, submit it again, and it goes on"
    exit "$status"
}

# check_plan RANKS COMMAND...: refuse, before any work, what this job has not the memory or the time for.
check_plan() {
    local ranks=$1 left said
    shift
    [ "${MPIIMG_PLAN:-}" != no ] || return 0
    left=$(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=TimeLeft:32 | tr -d ' ')
    said=$(python3 "$MPIIMG_HOME/slurm/ask.py" check "$ranks" "$(seconds "$left")" "$MPIIMG_REQUEUES" "$@") ||
        { status=$?; say "error: ${said#mpiimg*: error: }"; exit $status; }
    say "$said"
}

# seconds [DAYS-]HH:MM:SS: as a number; a year where there is no limit.
seconds() {
    local days=0 hours=0 minutes=0 rest
    case $1 in
    *[!0-9:-]* | "") echo 31536000 && return ;;
    *-*) days=${1%%-*} ;;
    esac
    IFS=: read -ra rest <<<"${1#*-}"
    case ${#rest[@]} in
    3) hours=${rest[0]} minutes=${rest[1]} ;;
    2) minutes=${rest[0]} ;;
    esac
    echo $((((10#$days * 24 + 10#$hours) * 60 + 10#$minutes) * 60 + 10#${rest[-1]}))
}

# SLURM requeues after the failure of the first node by itself, without a word to this script.
[ "${SLURM_RESTART_COUNT:-0}" -le "$MPIIMG_REQUEUES" ] ||
    { say "requeued ${SLURM_RESTART_COUNT} times (MPIIMG_REQUEUES=$MPIIMG_REQUEUES): giving up"; exit 1; }
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || say "restart $SLURM_RESTART_COUNT of at most $MPIIMG_REQUEUES"
