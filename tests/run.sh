#!/usr/bin/env bash
# make test and make test-long: both installs, ruff, then the tests in blocks, of which each says what it is.
# Blocks run two at a time; after the first that fails no other is started.
#
#   tests/run.sh "not long"|long        the tests to run, as pytest's -m takes it
#
# Variables: RANKS, MPI_TIMEOUT, LANES, and those of the install (docs/install.md).

cd "$(dirname "$0")/.."
. install/common.sh
SELECTED=$1
RANKS=${RANKS:-1 2 3 4}
MPI_TIMEOUT=${MPI_TIMEOUT:-600}
LANES=${LANES:-2}

loudly() {
    printf '\n%s\n' '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!'
    printf '!! %s\n' "$@"
    printf '%s\n\n' '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!'
}

# block TITLE COMMAND...: run it under its title. Pytest's 5 is "no test selected", which a block may well have.
block() {
    local title=$1 code=0 started=$SECONDS
    shift
    printf '\n==== %s\n' "$title"
    "$@" </dev/null || code=$?
    printf '==== %s: %d s\n' "$title" $((SECONDS - started))
    [ $code = 0 ] || [ $code = 5 ] || {
        [ $code != 124 ] || printf '\nno end within %s seconds\n' "$MPI_TIMEOUT"
        printf '\nFAILED: %s (exit code %s)\n' "$title" "$code"
        return 1
    }
}

# later TITLE COMMAND...: a block for run_blocks.
blocks=()
later() { blocks+=("$(printf '%q ' "$@")"); }

# Run the blocks in the order they were named, $LANES at a time, each block's words together when it ends.
# After one that fails no other is started.
run_blocks() {
    local entry running=0 failed=0
    logs=$(mktemp -d)
    set -m # each block is a process group of its own, so that an interrupted run can end all of it
    trap 'trap - EXIT; for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null; done; rm -rf "$logs"' EXIT
    trap 'exit 130' INT TERM
    for entry in "${blocks[@]}"; do
        [ $running -lt "$LANES" ] || { wait -n && running=$((running - 1)) || failed=1; }
        [ $failed = 0 ] || break
        (
            log=$(mktemp "$logs/XXXXXX") code=0
            eval "block $entry" >"$log" 2>&1 || code=1
            flock "$logs" cat "$log"
            exit $code
        ) &
        running=$((running + 1))
    done
    while [ -n "$(jobs -pr)" ]; do wait -n || failed=1; done
    [ $failed = 0 ] || { printf '\nA block FAILED: its words are above\n' >&2 && exit 1; }
    blocks=()
}

mpi_tests() {
    local venv=$1 ranks
    for ranks in $RANKS; do
        later "MPI tests, $venv, $ranks ranks" env MPIIMG_TEST_RANKS="$ranks" \
            timeout -k 10 "$MPI_TIMEOUT" "$venv/bin/mpiexec" -n "$ranks" \
            "$venv/bin/python" -m pytest -q --color=no --with-mpi -m "($SELECTED) and ranks" tests/engine
    done
}

tool_tests() {
    local selected="($SELECTED) and tool"
    [ "$1" = .venv ] || selected+=" and not one_install"
    later "tool tests, $1" "$1/bin/python" -m pytest -m "$selected" tests
}

# The same settings for ranks that pytest starts and for pytest on ranks: they stand in launch.py.
load_mpi_settings() {
    eval "$(cd tests && ../.venv/bin/python -c 'import shlex
from support import launch
for name, value in launch.MPI_SETTINGS.items():
    print("export", shlex.quote(f"{name}={value}"))')"
    export OMP_NUM_THREADS=1
}

# Programs that nobody here wrote, to compare with.
install_peers() {
    ! command -v dwi2tensor >/dev/null || return 0
    if may_install_packages && (install_packages mrtrix3); then return 0; fi
    loudly "MRtrix3 is not installed: the tests that compare with it are SKIPPED." \
        "(On Debian, as root: apt-get install --no-install-recommends mrtrix3)"
}

# A cluster on this machine, for tests/slurm; nothing is started here. Those tests look for it themselves.
install_slurm() {
    if command -v slurmd >/dev/null && command -v munged >/dev/null && [ "$(id -u)" = 0 ]; then return 0; fi
    if may_install_packages && (install_packages slurmctld slurmd slurm-client munge); then return 0; fi
    loudly "SLURM is not here and cannot be installed: ALL TESTS ON A CLUSTER ARE SKIPPED." \
        "(On Debian, as root: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge)"
}

install/install.sh wheel
if why=$(install/install.sh possible); then
    installs=".venv .venv-mpi"
    install/install.sh system
else
    installs=.venv
fi
install_peers
install_slurm
load_mpi_settings

block "ruff" make --no-print-directory lint || exit 1
# The longest first, so that none is left over at the end.
for venv in $installs; do tool_tests $venv; done
later "serial tests, .venv" .venv/bin/python -m pytest -m "($SELECTED) and not ranks and not tool and not slurm" tests
later "SLURM tests" .venv/bin/python -m pytest -m "($SELECTED) and slurm" tests/slurm
for venv in $installs; do mpi_tests $venv; done
run_blocks

[ "$installs" != .venv ] ||
    loudly "MPI=system cannot be installed here: ALL TESTS ON PARALLEL HDF5 WERE SKIPPED." "$why"
printf '\nAll blocks passed, on: %s\n' "$installs"
