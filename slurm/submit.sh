#!/usr/bin/env bash
# Submit one of the scripts in this folder, asking for the memory and the time that its plan predicts:
#
#   slurm/submit.sh [options of sbatch] slurm/neuro.sbatch DWI --bvals BVALS --bvecs BVECS --out OUT ...
#
# As sbatch itself, from the checkout; options that are given win. A cohort is counted, and planned by its largest
# image. The plan reads headers only, and takes seconds on a login node.

set -euo pipefail
MPIIMG_HOME=${MPIIMG_HOME:-$(cd "$(dirname "$0")/.." && pwd)}
export MPIIMG_HOME

fail() {
    echo "submit.sh: error: $*" >&2
    exit 2
}

given=()
while [ $# -gt 0 ] && [[ $1 != *.sbatch ]]; do
    given+=("$1")
    shift
done
[ $# -ge 2 ] || fail "usage: slurm/submit.sh [options of sbatch] slurm/neuro.sbatch ..., as in that script"
script=$1
shift

# The ranks: what was given, else what the script asks for.
ranks=$(printf '%s\n' "${given[@]}" | sed -n '/^-n$/{n;p}; s/^--ntasks=//p; s/^-n\([0-9]\)/\1/p' | tail -n 1)
ranks=${ranks:-$(sed -n 's/^#SBATCH --ntasks=//p' "$script")}

(
    . "$MPIIMG_HOME/slurm/env.sh"
    . "$MPIIMG_HOME/slurm/cohort.sh"
    array=() runs=1
    case $(basename "$script") in
    neuro.sbatch) command=(mpiimg-neuro "$@") ;;
    astro.sbatch) command=(mpiimg-astro "$@") ;;
    scaling.sbatch)
        # One rank takes as long as all the others together, at the best.
        command=(mpiimg-neuro "${@:2}" --out "$1") ranks=1 runs=2
        ;;
    neuro-array.sbatch)
        [ -r "$1" ] || fail "$1: no such folder or list"
        mapfile -t images < <(list_images "${1%/}")
        [ ${#images[@]} -gt 0 ] || fail "$1: no image sub-*/[ses-*/]dwi/*_dwi.nii[.gz], nor a line that names one"
        array=("--array=1-${#images[@]}")
        largest=$(
            for line in "${images[@]}"; do
                image_of "${1%/}" "$line"
                echo "$(stat -Lc %s "$dwi" 2>/dev/null || echo 0) $line"
            done | sort -rn | sed -n '1s/^[0-9]* //p'
        )
        image_command "${1%/}" "$2" "$largest" "${@:3}"
        [ -z "$lacking" ] || fail "$lacking"
        ;;
    *) fail "$script: no plan for this script; submit it by sbatch" ;;
    esac
    asked=$(python3 "$MPIIMG_HOME/slurm/ask.py" options "$ranks" "$runs" "${command[@]}") || fail "${asked#mpiimg*: error: }"
    # shellcheck disable=SC2086  # options are words of their own
    set -- $asked "${array[@]}" "${given[@]}" "$script" "$@"
    echo "sbatch ${*}"
    exec sbatch "$@"
)
