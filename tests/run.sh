#!/usr/bin/env bash
# make test and make test-long: both installs, ruff, then the tests in blocks, of which each says what it is.
# Blocks run two at a time; after the first that fails no other is started. A table of what each took stands at the end.
#
#   tests/run.sh "not long"|long        the tests to run, as pytest's -m takes it
#
# Variables: RANKS, MPI_TIMEOUT, LANES, and those of the install (docs/install.md).

cd "$(dirname "$0")/.."
. install/common.sh
SELECTED=$1
LANES=${LANES:-2}

loudly() {
    printf '\n%s\n' '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!'
    printf '!! %s\n' "$@"
    printf '%s\n\n' '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!'
}

# What each block took, a line each.
times=$(mktemp)
trap 'rm -f "$times"' EXIT

# block TITLE COMMAND...: run it under its title. Pytest's 5 is "no test selected", which a block may well have.
block() {
    local title=$1 code=0 took TIMEFORMAT='%R %U %S'
    shift
    printf '\n==== %s\n' "$title"
    exec 3>&1 4>&2
    took=$({ time "$@" </dev/null >&3 2>&4 3>&- 4>&-; } 2>&1) || code=$?
    exec 3>&- 4>&-
    printf '%s\t%s\n' "$title" "$took" >>"$times"
    [ $code = 0 ] || [ $code = 5 ] || {
        printf '\nFAILED: %s (exit code %s)\n' "$title" "$code"
        return 1
    }
}

# CPU seconds are those of all processes that a block started and waited for.
print_times() {
    printf '\n%-32s %8s %8s\n' "seconds" "wall" "CPU"
    awk -F'\t' '{ split($2, s, " "); cpu = s[2] + s[3]; printf "%-32s %8.0f %8.0f\n", $1, s[1], cpu; all += cpu }
        END { printf "%-32s %8.0f %8.0f\n", "all", wall, all }' wall=$SECONDS "$times"
}

# later TITLE COMMAND...: a block for run_blocks.
blocks=()
later() { blocks+=("$(printf '%q ' "$@")"); }

# Run the blocks in the order they were named, $LANES at a time, each block's words together when it ends.
# The block of SLURM takes no lane: it waits for its daemons most of the time. After one that fails no other is
# started. What has not said that it passed has failed.
run_blocks() {
    local entry waiting=none
    logs=$(mktemp -d)
    set -m # each block is a process group of its own, so that an interrupted run can end all of it
    trap 'trap - EXIT; for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null; done; rm -rf "$logs" "$times"' EXIT
    trap 'exit 130' INT TERM
    for entry in "${blocks[@]}"; do
        while [ "$(jobs -pr | grep -cvx "$waiting")" -ge "$LANES" ]; do wait -n; done
        [ ! -e "$logs/failed" ] || break
        (
            log=$(mktemp "$logs/XXXXXX") end=passed
            eval "block $entry" >"$log" 2>&1 || end=failed
            flock "$logs" cat "$log"
            echo "$entry" >>"$logs/$end"
        ) &
        case $entry in SLURM*) waiting=$! ;; esac
    done
    wait
    [ "$(cat "$logs/passed" 2>/dev/null | wc -l)" = ${#blocks[@]} ] || {
        printf '\nA block FAILED: its words are above\n' >&2 && exit 1
    }
    blocks=()
}

# tests TITLE VENV MARKERS FILES...: a block of the tests with these markers. FILES are those that may hold some:
# to collect the others takes longer than many a block.
tests() {
    local title=$1 venv=$2 markers=$3
    shift 3
    later "$title, $venv" "$venv/bin/python" -m pytest -m "$markers" ${RANKS:+--ranks "${RANKS// /,}"} "$@"
}

# with PATTERN [FOLDER...], without PATTERN: the files of tests in which it stands, or does not.
with() { local pattern=$1 && shift && grep -rlE --include='test_*.py' "$pattern" "${@:-tests}"; }
without() { grep -rLE --include='test_*.py' "$1" tests; }

# Programs that nobody here wrote, to compare with.
install_peers() {
    if command -v dwi2tensor >/dev/null && command -v fitsverify >/dev/null; then return 0; fi
    if may_install_packages && (install_packages mrtrix3 fitsverify); then return 0; fi
    loudly "MRtrix3 or fitsverify is not installed: the tests that compare with it are SKIPPED." \
        "(On Debian, as root: apt-get install --no-install-recommends mrtrix3 fitsverify)"
}

# Validators and readers that nobody here wrote, of the versions that tests/conformance names: into a folder of the
# cache, since nobody else needs them. Deno is the client of the npm registry, too.
install_validators() {
    local folder=${CACHE:-.cache}/conformance pins=tests/conformance digest
    digest=$(cat $pins/requirements.txt $pins/package.json | sha256sum)
    refuse_shared "$folder"
    [ "$(cat "$folder/.installed" 2>/dev/null)" != "$digest" ] || return 0
    rm -rf "$folder"
    mkdir -p "$folder"
    cp $pins/package.json "$folder"
    if [ -z "${WHEELHOUSE:-}" ] &&
        .venv/bin/pip install -qq --retries 1 --no-deps --only-binary :all: --target "$folder/python" -r $pins/requirements.txt &&
        (cd "$folder" && DENO_DIR=deno python/bin/deno install --quiet); then
        echo "$digest" >"$folder/.installed"
        return 0
    fi
    loudly "The BIDS validator and others of $pins cannot be fetched: NO OUTPUT IS VALIDATED."
}

# A browser, for the pages that runs write.
install_browser() {
    if command -v chromium >/dev/null; then return 0; fi
    if may_install_packages && (install_packages chromium); then return 0; fi
    loudly "Chromium is not here and cannot be installed: NO PAGE IS LOOKED AT IN A BROWSER." \
        "(On Debian, as root: apt-get install --no-install-recommends chromium)"
}

# A cluster on this machine, for tests/slurm; nothing is started here. Those tests look for it themselves.
install_slurm() {
    if command -v slurmd >/dev/null && command -v munged >/dev/null && [ "$(id -u)" = 0 ]; then return 0; fi
    if may_install_packages && (install_packages slurmctld slurmd slurm-client munge); then return 0; fi
    loudly "SLURM is not here and cannot be installed: ALL TESTS ON A CLUSTER ARE SKIPPED." \
        "(On Debian, as root: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge)"
}

# What builds the docs too: nothing is installed while tests run.
install/install.sh docs
if why=$(install/install.sh possible); then
    installs=".venv .venv-mpi"
    install/install.sh system
else
    installs=.venv
fi
install_peers
install_validators
install_browser
install_slurm

block "ruff" make --no-print-directory lint || exit 1
site="site and $SELECTED" ranks="ranks and $SELECTED"
if [ "$SELECTED" = long ]; then
    # Also what otherwise one install does for both.
    RANKS=${RANKS:-1 2 3 4} site="(long or not site)" ranks="ranks"
fi
# Tools in two blocks that take about as long. Those of the first share the heads that the session makes.
heads="tests/neuro tests/tools" others=$(ls -d tests/*/ | grep -vE '/(neuro|tools|__pycache__)/')
# What takes no lane, then the longest, so that none is left over at the end.
# shellcheck disable=SC2046,SC2086  # names of files are words
{
    tests "SLURM" .venv "slurm and $SELECTED" $(with 'mark\.slurm')
    tests "tools, heads" .venv "tool and $SELECTED" $(with 'mark\.tool' $heads)
    tests "tools, others" .venv "tool and $SELECTED" $(with 'mark\.tool' $others)
    tests "serial" .venv "not (ranks or tool or slurm or conformance) and $SELECTED" $(without '^pytestmark.*mark\.(ranks|tool|slurm|conformance)')
    later "docs" make --no-print-directory docs
    tests "conformance" .venv "conformance and $SELECTED" $(with 'mark\.conformance')
    for venv in $installs; do tests "ranks" $venv "$ranks" $(with 'mark\.ranks'); done
    [ "$installs" = .venv ] || tests "tools" .venv-mpi "tool and $site" $(with 'mark\.tool')
}
run_blocks

[ "$installs" != .venv ] ||
    loudly "MPI=system cannot be installed here: ALL TESTS ON PARALLEL HDF5 WERE SKIPPED." "$why"
print_times
printf '\nAll blocks passed, on: %s\n' "$installs"
