"""What a run needs of SLURM, by its plan; and where the results of an image of a cohort go.

python3 slurm/ask.py options RANKS RUNS TOOL ...
    print options of sbatch for so many ranks, and so many runs after each other
python3 slurm/ask.py check RANKS SECONDS REQUEUES TOOL ...
    say whether this job can do it, whose limit is SECONDS away and which may be requeued so often; exit 2
python3 slurm/ask.py folder COHORT OUT DWI
    print the folder for the results of an image of a cohort, whose lines are on stdin
"""

import glob
import hashlib
import json
import math
import os
import re
import subprocess
import sys

#: Of its share of the memory of a node, a rank takes nine tenths.
SHARE = 0.9

#: MB that a rank takes, and the process that compiles kernels beside it.
MIN_MEMORY = 500

#: Seconds for the start of a job, the kernels to compile on a node, and the end.
START = 300


class Refused(Exception):
    """The tool does not plan this: exit status, and what it says."""


def plan(command, ranks, *options):
    """Return the totals of the plan of `command`.

    Raises
    ------
    Refused : the tool did
    """
    words = [*command, "--plan=json", f"--ranks={ranks}", *options]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.returncode, done.stderr)
    return json.loads(done.stdout)["totals"]


def lacks_memory(refused):
    """Say whether a tool refused for lack of memory."""
    return re.search(r"needs \d+ MB per rank", refused.args[1]) is not None


def options(command, ranks, runs=1):
    """Return options of sbatch: the memory of a plan for 2 GB a rank or more, and twice its time."""
    for gigabytes in (2, 4, 8, 16, 32, 64, 128):
        try:
            totals = plan(command, ranks, f"--memory={gigabytes}G")
            break
        except Refused as refused:
            if not lacks_memory(refused) or gigabytes == 128:
                raise
    memory = max(MIN_MEMORY, math.ceil(1.05 * totals["peak_per_rank"] / SHARE / (100 << 20)) * 100)
    minutes = math.ceil((START + 2 * runs * totals["seconds"]) / 60)
    return f"--mem-per-cpu={memory}M --time={minutes}"


def check(command, ranks, seconds, requeues):
    """Return whether a job can do it, and what to say."""
    try:
        totals = plan(
            command, ranks, f"--nodes={min(ranks, int(os.environ.get('SLURM_JOB_NUM_NODES', '1')))}"
        )
    except Refused as refused:
        if not lacks_memory(refused):
            raise
        needs = re.search(r"stage .* needs \d+ MB per rank and has \d+", refused.args[1])
        return False, f"{needs[0]}: sbatch {options(command, ranks)} ..."
    if totals["seconds"] > seconds * (1 + requeues):
        return False, (
            f"predicted {_minutes(totals['seconds'])}, the limit is {_minutes(seconds)} away and the job "
            f"may be requeued {requeues} times: sbatch {options(command, ranks)} ..., "
            "or export MPIIMG_REQUEUES"
        )
    said = f"predicted {_minutes(totals['seconds'])}, {totals['peak_per_rank'] >> 20} MB per rank"
    if totals["seconds"] > seconds:
        said += f"; the limit is {_minutes(seconds)} away, so that the job will be requeued"
    return True, said


def folder_of(cohort, out, dwi, lines):
    """Return the folder that the results of an image go to: no other image has it, in this list or another.

    That of its name, or of its place in a BIDS folder; where several images of the cohort have that, or
    another image has results there, one whose name follows from the path of the image alone.

    Parameters
    ----------
    cohort, out, dwi : str
        The BIDS folder or the list, the folder of all results, and the image.
    lines : sequence of str
        Of the whole cohort, each beginning with its image.
    """
    is_folder = os.path.isdir(cohort)
    images = {line if is_folder else line.split()[0] for line in lines if line.strip()}
    plain = _plain(cohort, out, dwi)
    owners = _owners(plain)
    if os.path.abspath(dwi) in owners:
        return plain
    if owners or any(_plain(cohort, out, image) == plain for image in images - {dwi}):
        # One image may be there as .nii and as .nii.gz.
        shared = any(_bare(image) == _bare(dwi) for image in images - {dwi})
        if dwi.startswith(cohort + "/"):
            return os.path.join(plain, os.path.basename(dwi if shared else _bare(dwi)))
        path = os.path.abspath(dwi if shared else _bare(dwi))
        name = re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(path.split(os.sep)[-3:])).strip("-.")[-100:]
        return os.path.join(out, f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}")
    return plain


def _plain(cohort, out, dwi):
    """Return the folder that an image has if it is alone in it."""
    if dwi.startswith(cohort + "/"):
        return os.path.join(out, os.path.dirname(os.path.relpath(dwi, cohort)))
    return os.path.join(out, os.path.basename(_bare(dwi)))


def _bare(dwi):
    return re.sub(r"\.nii(\.gz)?$", "", dwi)


def _owners(folder):
    """Return the images that runs in a folder say they are or were of, finished or not."""
    owners = set()
    for path in glob.glob(os.path.join(glob.escape(folder), "run.json")) + glob.glob(
        os.path.join(glob.escape(folder), "work", "*.neuro", "request")
    ):
        try:
            with open(path, encoding="utf-8") as file:
                owners.add(os.path.abspath(json.load(file)["inputs"]["dwi"]["path"]))
        except (OSError, ValueError, KeyError, TypeError):
            owners.add(path)  # of nobody knows which image
    return owners


def _minutes(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main(words):
    """Answer the command line."""
    try:
        if words[0] == "options":
            print(options(words[3:], int(words[1]), int(words[2])))
            return 0
        if words[0] == "folder":
            print(folder_of(*words[1:4], sys.stdin.read().splitlines()))
            return 0
        able, said = check(words[4:], int(words[1]), int(words[2]), int(words[3]))
        print(said)
        return 0 if able else 2
    except Refused as refused:
        status, said = refused.args
        print(said.strip())
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
