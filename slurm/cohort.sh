# Sourced by neuro-array.sbatch and submit.sh: the images of a cohort, and the run of each.

# list_images FOLDER|FILE: the diffusion images of a BIDS folder in the order of their names, or the lines of a list
# (DWI, or DWI BVALS BVECS), without comments and what Windows adds to them.
list_images() {
    if [ -d "$1" ]; then
        find -L "$1" -path "$1/sub-*/dwi/*" \( -name '*_dwi.nii' -o -name '*_dwi.nii.gz' \) | LC_ALL=C sort
    else
        LC_ALL=C sed -e '1s/^\xEF\xBB\xBF//' -e 's/\r$//' -e 's/\(^\|[[:space:]]\)#.*//' "$1" | grep '[^[:space:]]'
    fi
}

# image_of COHORT LINE: set `dwi`, `bvals` and `bvecs` to what a line names. In a folder each line is one image,
# whatever its name holds.
image_of() {
    if [ -d "$1" ]; then dwi=$2 bvals='' bvecs=''; else read -r dwi bvals bvecs <<<"$2"; fi
}

# image_command COHORT OUT LINE [FLAGS]: set `command`, with which mpiimg-neuro runs on that line, and `folder`, to
# which its results go; or set `lacking` to what is not there. Reads `images`, the lines of the cohort.
image_command() {
    local cohort=$1 out=$2 dwi bvals bvecs stem
    image_of "$cohort" "$3"
    shift 3
    stem=${dwi%.gz}
    stem=${stem%.nii}
    bvals=${bvals:-$stem.bval} bvecs=${bvecs:-$stem.bvec} lacking=
    folder=$(printf '%s\n' "${images[@]}" | python3 "$MPIIMG_HOME/slurm/ask.py" folder "$cohort" "$out" "$dwi")
    [ -r "$bvals" ] && [ -r "$bvecs" ] ||
        lacking="$dwi: no $bvals and $bvecs; name its gradients in a list: DWI BVALS BVECS"
    command=(mpiimg-neuro "$dwi" --bvals "$bvals" --bvecs "$bvecs" --out "$folder" "$@")
}
