"""Compare what two checkouts of mpiimg make of the same inputs, byte for byte; or their speed.

    python tests/support/compare_checkouts.py BEFORE AFTER [--ranks 1 2 3 4] [--installs .venv .venv-mpi]
    python tests/support/compare_checkouts.py BEFORE AFTER --speed

Each tool is started as users do, from the checkout's `bin/`, under mpiexec, with the libraries of one install
and the package of the checkout. The inputs are the demo's: a subject and surveys that BEFORE simulates, and
real data. A tool of one step gets what BEFORE made of the steps before it, so that one difference does not
become many.

BEFORE runs once, on one rank of the first install, as any number of ranks is to give the same. Its results
stay in the folder `--work`, and serve until its commit or the command is another. Those of AFTER stay where
they differ. Left out are the records of runs (`run*.json`), their events and claims. Exit status: 0 the same,
1 not, 2 no comparison.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# What an MPI must be told on a small machine is said once for all tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import launch

#: Seconds that one run may take on a busy machine.
PATIENCE = 3600

#: Said of a file whose bytes may differ while what they say does not.
SAME_CONTENT = "the same content"

#: Pairs of runs that speed is told from, and above which ratio AFTER is called slower.
PAIRS, SLOWER = 7, 1.03


@dataclass(frozen=True)
class Case:
    """One run of a tool.

    Parameters
    ----------
    name : of the case, and of the folder with its results
    command : the tool without "mpiimg-", and its arguments. Replaced: {out} by that folder, {examples} by a
        copy of docs/examples of BEFORE (sidecars hold digests of functions), {before} by the folder of its
        results, {study} by a BIDS dataset, {decam}, {small_64D} and {small_101D} by real data. A word with
        a star stands for all such files
    needs : cases whose results it reads
    in_memory : it is run once more with --in-memory
    long : it is run with --long only
    """

    name: str
    command: str
    needs: tuple[str, ...] = ()
    in_memory: bool = False
    long: bool = False


HEAD = "{before}/head/dwi.nii.gz --bvals {before}/head/dwi.bval --bvecs {before}/head/dwi.bvec"
SMALL = (
    "{before}/small-head/dwi.nii.gz --bvals {before}/small-head/dwi.bval --bvecs {before}/small-head/dwi.bvec"
)
BRAIN = "{before}/mask/dwi_desc-brain_mask.nii.gz"
DENOISED = "{before}/denoise/dwi_desc-denoised_dwi"
TRACT = "--patch 600 --border 50"
SMALL_TRACT = "--patch 160 --border 20"

#: Imports of BEFORE's examples, and where what they import lies now.
MOVED = {"from mpiimg.io.maskplanes import bits": "from mpiimg.astro.fits.maskplanes import bits"}

CASES = (
    Case("head", "simulate neuro --shape 72x86x72 --volumes 30 --sigma 40 --out {out}"),
    Case("small-head", "simulate neuro --shape 56x52x16 --volumes 8 --out {out}"),
    Case("sky", "simulate astro --visits 5 --sensors 2 --shape 700x800 --out {out}"),
    Case("small-sky", "simulate astro --visits 4 --sensors 1 --shape 220x260 --seed 5 --out {out}"),
    Case("neuro", f"neuro {HEAD} --residual --fit-residual --out {{out}}", ("head",), in_memory=True),
    Case("neuro-64", "neuro {small_64D} --sigma 20 --residual --out {out}"),
    Case("neuro-101", "neuro {small_101D} --sigma 8 --b-max 1500 --residual --out {out}"),
    Case(
        "neuro-options",
        f"neuro {SMALL} --median-radius 2 --finalize --dilate 1 --sigma estimate --coils 4 --patch-radius 2 "
        "--method ols --frame scanner --tensor-order mrtrix --out {out}",
        ("small-head",),
    ),
    Case("cohort", "neuro {study} {out} participant --median-radius 2", ("small-head",)),
    Case("stage", "stage {before}/small-head/dwi.nii.gz {out}/staged.h5", ("small-head",)),
    Case("mask", f"mask {SMALL} --median-radius 2 --out {{out}}", ("small-head",)),
    Case(
        "mask-of-staged",
        f"mask {SMALL.replace('small-head/dwi.nii.gz', 'stage/staged.h5')} --median-radius 2 --out {{out}}",
        ("small-head", "stage"),
    ),
    Case(
        "denoise",
        "denoise {before}/small-head/dwi.nii.gz " + f"--mask {BRAIN} --residual --out {{out}}",
        ("small-head", "mask"),
    ),
    Case(
        "denoise-gaussian",
        "denoise {before}/small-head/dwi.nii.gz " + f"--mask {BRAIN} --gaussian --sigma 40 --out {{out}}",
        ("small-head", "mask"),
    ),
    Case(
        "fit",
        f"fit {DENOISED}.nii.gz --bvals {DENOISED}.bval --bvecs {DENOISED}.bvec --mask {BRAIN} "
        "--fit-residual --tensor-order fsl --out {out}",
        ("denoise",),
    ),
    Case("fit-nlls", f"fit {SMALL} --mask {BRAIN} --method nlls --out {{out}}", ("mask",), long=True),
    Case(
        "fit-restore",
        f"fit {SMALL} --mask {BRAIN} --method restore --restore-sigma 40 --out {{out}}",
        ("mask",),
        long=True,
    ),
    Case(
        "astro",
        f"astro {{before}}/sky/sim-*.fits {TRACT} --weight --segmentation --background --out {{out}}",
        ("sky",),
        in_memory=True,
    ),
    Case(
        "astro-all",
        f"astro {{before}}/small-sky/sim-*.fits {SMALL_TRACT} --calibrated --warps --compress --weights "
        "pixel --catalogue catalogue.ecsv --out {out}",
        ("small-sky",),
    ),
    Case(
        "astro-decam",
        "astro {decam}/*_ooi_*.fits --zero-point 25 --patch 100 --border 10 --reject-cr --out {out}",
    ),
    Case("calibrate", "calibrate {before}/small-sky/sim-*.fits --out {out}", ("small-sky",)),
    Case("warp", f"warp {{before}}/calibrate/sim-*.fits {SMALL_TRACT} --out {{out}}", ("calibrate",)),
    Case("coadd", "coadd {before}/warp --weight --out {out}", ("warp",)),
    Case("coadd-mean", "coadd {before}/warp --statistic mean --compress --out {out}", ("warp",)),
    Case("detect", "detect {before}/coadd --segmentation --background --out {out}/sources.fits", ("coadd",)),
    Case("detect-text", "detect {before}/coadd --no-deblend --out {out}/sources.ecsv", ("coadd",)),
    Case(
        "run-slabs",
        "run --udf {examples}/gaussian.py:gaussian {before}/small-head/dwi.nii.gz {out}/smooth.nii.gz",
        ("small-head",),
    ),
    Case(
        "run-compiled",
        "run --udf {examples}/sharpen.py:sharpen --halo 1 --param strength=0.5 "
        "{before}/small-head/dwi.nii.gz {out}/sharp.nii.gz",
        ("small-head",),
    ),
    Case(
        "run-volumes",
        "run --udf scipy.ndimage:gaussian_filter --over volumes --param sigma=1 --dtype float32 "
        "{before}/small-head/dwi.nii.gz {out}/smooth.nii.gz",
        ("small-head",),
    ),
    Case(
        "run-voxels",
        "run --udf {examples}/kurtosis.py:kurtosis {before}/small-head/dwi.nii.gz {out}/map.nii.gz",
        ("small-head",),
    ),
    Case(
        "run-model",
        f"run --udf {{examples}}/csa.py:csa_gfa {SMALL} --mask {BRAIN} --param sh_order_max=2 --out {{out}}",
        ("mask",),
    ),
    Case(
        "run-aggregate",
        "run --udf {examples}/histogram.py:Histogram {before}/small-head/dwi.nii.gz {out}/counts.json",
        ("small-head",),
    ),
    Case(
        "run-exposures",
        "run --udf {examples}/columns.py:level_columns {before}/calibrate/sim-*.fits --out {out}",
        ("calibrate",),
    ),
    Case(
        "run-patches", "run --udf {examples}/median_coadd.py:MedianCoadd {before}/warp --out {out}", ("warp",)
    ),
    Case(
        "run-smooth-fit",
        "run {examples}/smooth-fit.toml {small_64D} --out {out}",
        in_memory=True,
    ),
    Case(
        "run-sky",
        "run {examples}/sky.toml {before}/small-sky/sim-*.fits --out {out}",
        ("small-sky",),
        in_memory=True,
    ),
)

#: Runs whose CPU time is compared.
SPEED = ("neuro", "astro")


class NoComparison(Exception):
    """There is nothing to compare."""


@dataclass(frozen=True)
class Checkout:
    """A checkout and the Python that it runs with."""

    folder: Path
    python: Path

    def command(self, words: list[str], ranks: int) -> list[str]:
        """Return the command that runs a tool."""
        tool, *arguments = words
        program = self.folder / "bin" / f"mpiimg-{tool}"
        return [*launch.mpiexec(ranks, str(self.python)), str(self.python), str(program), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return launch.environment(PYTHONPATH=str(self.folder))

    @property
    def commit(self) -> str:
        """The commit that is checked out.

        Raises
        ------
        NoComparison : files differ from it
        """
        changed = _said(["git", "-C", self.folder, "status", "--porcelain", "--untracked-files=no"])
        if changed:
            raise NoComparison(f"{self.folder} is not as committed:\n{changed}")
        return _said(["git", "-C", self.folder, "rev-parse", "HEAD"])

    def check(self) -> None:
        """See to it that the package is that of the checkout."""
        found = self.ask("import mpiimg; print(mpiimg.__file__)")
        if not Path(found).resolve().is_relative_to(self.folder):
            raise NoComparison(f"{self.python} takes mpiimg from {found}, not from {self.folder}")

    def ask(self, program: str) -> str:
        """Return what a Python program prints."""
        return _said([self.python, "-P", "-c", program], env=self.environment)


def _said(command, **how) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **how)
    if done.returncode:
        raise NoComparison(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


class Before:
    """BEFORE's results, of which each is made once."""

    def __init__(self, checkout: Checkout, work: Path):
        self.checkout = checkout
        # As deep as the results of AFTER: a derivative names its dataset by the way that leads there.
        self.folder = work / "before" / checkout.commit[:12]
        self.study = work / "studies" / self.folder.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = _real_data(checkout)
        self.examples = work / "examples" / self.folder.name
        _copy_examples(checkout.folder / "docs" / "examples", self.examples)

    def words(self, case: Case, out: Path) -> list[str]:
        """Return the command line of a case."""
        places = {
            "out": out,
            "before": self.folder,
            "study": self.study,
            "examples": self.examples,
            **self.data,
        }
        return [found for word in case.command.format(**places).split() for found in _expanded(word)]

    def lacks(self, case: Case) -> str:
        """Return the name of data that a case is about and that are not here."""
        names = re.findall(r"{(decam|small_\w+)}", case.command)
        return next((name for name in names if name not in self.data), "")

    def result(self, case: Case) -> Path:
        """Return the folder with the results of a case."""
        for name in case.needs:
            self.result(NAMED[name])
        if case.name == "cohort":
            self._write_study()
        out, done = self.folder / case.name, self.folder / f"{case.name}.done"
        words = self.words(case, out)
        if done.exists() and json.loads(done.read_text()) == words:
            return out
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        failure = run(self.checkout, words, 1)
        if failure:
            raise NoComparison(f"{case.name}: BEFORE failed: {failure}")
        done.write_text(json.dumps(words))
        return out

    def _write_study(self) -> None:
        """Lay out a BIDS dataset of two subjects."""
        if self.study.exists():
            return
        made = self.study.with_name(f"{self.study.name}.new")
        shutil.rmtree(made, ignore_errors=True)
        for subject in ("01", "02"):
            folder = made / f"sub-{subject}" / "dwi"
            folder.mkdir(parents=True)
            for path in (self.folder / "small-head").glob("dwi.*"):
                shutil.copy(path, folder / path.name.replace("dwi", f"sub-{subject}_dwi", 1))
        description = {"Name": "two of one head", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
        (made / "dataset_description.json").write_text(json.dumps(description))
        made.rename(self.study)


NAMED = {case.name: case for case in CASES}


def _copy_examples(examples: Path, copy: Path) -> None:
    """Copy the examples, so that both checkouts can import what has moved between them."""
    shutil.copytree(examples, copy, dirs_exist_ok=True)
    for path in copy.glob("*.py"):
        text = path.read_text()
        for statement, moved in MOVED.items():
            either = f"try:\n    {moved}\nexcept ImportError:\n    {statement}\n"
            text = text.replace(f"{statement}\n", either)
        path.write_text(text)


def _real_data(checkout: Checkout) -> dict[str, str]:
    """Return words for the real data that the demo uses, as far as they are here."""
    asked = "from dipy.data import get_fnames; print(*get_fnames(name='{}'), sep='|')"
    found = {}
    for name in ("small_64D", "small_101D"):
        dwi, bvals, bvecs = checkout.ask(asked.format(name)).split("|")
        found[name] = f"{dwi} --bvals {bvals} --bvecs {bvecs}"
    decam = checkout.folder.parent / "shared" / "data" / "decam-testcase3"
    if decam.exists():
        found["decam"] = str(decam)
    return found


def _expanded(word: str) -> list[str]:
    """Return the files that a pattern stands for, as a shell does."""
    if "*" not in word:
        return [word]
    path = Path(word)
    return sorted(map(str, path.parent.glob(path.name)))


def run(checkout: Checkout, words: list[str], ranks: int) -> str:
    """Run a tool; return what it said if it failed."""
    command = checkout.command([*words, "--quiet"], ranks)
    done = subprocess.run(
        command,
        env=checkout.environment,
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
    )
    return f"exit status {done.returncode}: {done.stderr.strip()[-2000:]}" if done.returncode else ""


# --- What differs ------------------------------------------------------------------------------------------


def results(folder: Path) -> dict[str, Path]:
    """Return the files that a run has written, by name, without what it says of itself."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {}
    for name, path in found.items():
        record = path.name.startswith("run") and path.suffix == ".json"
        if path.suffix == ".json" and not path.with_name(f"run-{path.name}").exists():
            # The record of a run that writes one file may be called after it, as its events are.
            record |= path.with_name(f"events-{path.stem}").is_dir()
        kinds = {part.split("-")[0] for part in Path(name).parts[:-1]}
        if not record and not kinds & {"events", "claims"}:
            kept[name] = path
    return kept


def differences(before: Path, after: Path) -> tuple[int, dict[str, str]]:
    """Return how many files were compared, and what differs in which."""
    ours, theirs = results(before), results(after)
    found = {name: "is missing" for name in ours.keys() - theirs.keys()}
    found |= {name: "is new" for name in theirs.keys() - ours.keys()}
    found |= {name: _difference(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()}
    return len(ours.keys() | theirs.keys()), {name: text for name, text in found.items() if text}


def _difference(one: Path, other: Path) -> str:
    """Say how two files differ; "" if they do not."""
    data, twin = (_timeless(path) for path in (one, other))
    if data == twin:
        return ""
    kinds = {".fits": _of_fits, ".fz": _of_fits, ".gz": _of_nifti, ".png": _of_picture, ".h5": _of_staged}
    try:
        told = kinds.get(one.suffix, _of_text)(one, other)
    except Exception as error:
        told = f"cannot be read: {error!r}"
    if told == SAME_CONTENT:
        return ""
    place = next((i for i, pair in enumerate(zip(data, twin, strict=False)) if pair[0] != pair[1]), -1)
    place = min(len(data), len(twin)) if place < 0 else place
    seen = (repr(content[place : place + 16])[2:-1] for content in (data, twin))
    return f"byte {place} of {len(data)} and {len(twin)}: {' | '.join(seen)}: {told}"


def _timeless(path: Path) -> bytes:
    """Return the bytes of a file; of a compressed FITS file without the time in them.

    astropy stores rows that it cannot quantize as gzip does, with the time, which enters the sums as well.
    """
    data = path.read_bytes()
    if path.suffix != ".fz":
        return data
    data = re.sub(rb"(\x1f\x8b\x08\x00).{4}", rb"\1....", data, flags=re.DOTALL)
    return re.sub(rb"(CHECKSUM|DATASUM )= '.{68}", rb"\1= '" + b" " * 68, data)


def _of_values(one, other) -> str:
    """Say how arrays differ."""
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"{one.dtype} {one.shape} | {other.dtype} {other.shape}"
    if one.dtype.names:
        told = {name: _of_values(one[name], other[name]) for name in one.dtype.names}
        return "; ".join(f"column {name}: {text}" for name, text in told.items() if text)
    apart = np.frombuffer(np.ascontiguousarray(one).tobytes(), f"V{one.dtype.itemsize}") != np.frombuffer(
        np.ascontiguousarray(other).tobytes(), f"V{one.dtype.itemsize}"
    )
    if not apart.any():
        return ""
    text = f"{apart.sum()} of {apart.size} values"
    if one.dtype.kind in "iufb":
        most = np.nanmax(np.abs(one.astype(float) - other.astype(float)))
        text += f", by up to {most:g}"
    return f"{text}, the first at {[int(i) for i in np.unravel_index(np.argmax(apart), one.shape)]}"


#: Cards that follow from the others and from the values.
SUMS = ("CHECKSUM", "DATASUM")


def _of_fits(one: Path, other: Path) -> str:
    from astropy.io import fits

    with (
        fits.open(one, disable_image_compression=True) as ours,
        fits.open(other, disable_image_compression=True) as theirs,
    ):
        if [hdu.name for hdu in ours] != [hdu.name for hdu in theirs]:
            return f"HDUs {[hdu.name for hdu in ours]} | {[hdu.name for hdu in theirs]}"
        told = []
        for number, (hdu, twin) in enumerate(zip(ours, theirs, strict=True)):
            cards = [
                [card.image.rstrip() for card in each.header.cards if card.keyword not in SUMS]
                for each in (hdu, twin)
            ]
            told += [
                f"HDU {number} {hdu.name}: {card} | {changed}"
                for card, changed in zip(*_padded(*cards), strict=True)
                if card != changed
            ][:3]
            if hdu.data is not None and twin.data is not None and (text := _of_values(hdu.data, twin.data)):
                told.append(f"HDU {number} {hdu.name}: {text}")
        return "; ".join(told) or "neither cards nor values of a table's cells"


def _padded(one: list, other: list) -> tuple[list, list]:
    length = max(len(one), len(other))
    return one + [""] * (length - len(one)), other + [""] * (length - len(other))


def _of_nifti(one: Path, other: Path) -> str:
    import nibabel

    data, twin = (gzip.decompress(path.read_bytes()) for path in (one, other))
    if data == twin:
        return "the compression alone"
    start = nibabel.load(one).dataobj.offset
    if data[:start] != twin[:start]:
        return "the header"
    return _of_values(*(np.asarray(nibabel.load(path).dataobj.get_unscaled()) for path in (one, other)))


def _of_picture(one: Path, other: Path) -> str:
    from PIL import Image

    return f"pixels: {_of_values(Image.open(one), Image.open(other)) or 'the same'}"


def _of_staged(one: Path, other: Path) -> str:
    """Say how staged files differ in what they hold: HDF5 writes the time, and its versions other bytes."""
    import h5py

    with h5py.File(one, "r", locking=False) as ours, h5py.File(other, "r", locking=False) as theirs:
        if sorted(ours) != sorted(theirs) or {**ours.attrs}.keys() != {**theirs.attrs}.keys():
            return f"holds {sorted(ours)} {sorted(ours.attrs)} | {sorted(theirs)} {sorted(theirs.attrs)}"
        told = {name: _of_values(ours[name][...], theirs[name][...]) for name in ours}
        told |= {
            f"{node.name}@{name}": _of_values(node.attrs[name], theirs[node.name].attrs.get(name, ""))
            for node in (ours, *ours.values())
            for name in node.attrs
        }
        return "; ".join(f"{name}: {text}" for name, text in told.items() if text) or SAME_CONTENT


def _of_text(one: Path, other: Path) -> str:
    lines = (path.read_text(errors="replace").splitlines() for path in (one, other))
    for number, (line, changed) in enumerate(zip(*_padded(*lines), strict=True), 1):
        if line != changed:
            return f"line {number}: {line.strip()[:160]} | {changed.strip()[:160]}"
    return "the ends of lines"


# --- The comparison ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """How AFTER is run."""

    checkout: Checkout
    install: str
    ranks: int
    in_memory: bool = False

    def __str__(self) -> str:
        return f"{self.install}, {self.ranks} ranks" + (", in memory" if self.in_memory else "")

    @property
    def folder(self) -> str:
        """Name of the folder of its results."""
        return f"{self.install.lstrip('.')}-{self.ranks}" + ("-in-memory" if self.in_memory else "")


def variants(given: argparse.Namespace) -> Iterator[Variant]:
    """Return all ways to run AFTER; in memory is one number of ranks of each install."""
    for prefix in given.installs:
        checkout = Checkout(given.after, prefix / "bin" / "python")
        for ranks in given.ranks:
            yield Variant(checkout, prefix.name, ranks)
        yield Variant(checkout, prefix.name, given.ranks[-1], in_memory=True)


def compare(given: argparse.Namespace, before: Before, cases: list[Case]) -> int:
    """Run all that is asked for, print what differs, and return how many files do."""
    compared = differing = runs = 0
    for case in cases:
        if lacking := before.lacks(case):
            print(f"{case.name}: left out, since {lacking} is not here", flush=True)
            continue
        expected = before.result(case)
        for variant in variants(given):
            if variant.in_memory and not (case.in_memory or given.long):
                continue
            out = given.work / "after" / variant.folder / case.name
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            words = before.words(case, out)
            failure = run(variant.checkout, words + ["--in-memory"] * variant.in_memory, variant.ranks)
            number, found = (1, {"": failure}) if failure else differences(expected, out)
            if given.pictures_may_differ:
                _say_of_pictures(case, variant, found)
                found = {name: text for name, text in found.items() if not name.endswith(".png")}
            runs, compared, differing = runs + 1, compared + number, differing + len(found)
            print(f"{case.name}: {variant}: {number} files, {len(found)} differ", flush=True)
            for name, text in sorted(found.items()):
                print(f"    {name}: {text}", flush=True)
            if not found:
                shutil.rmtree(out)
    print(f"{len(cases)} cases, {runs} runs, {compared} files compared, {differing} differ")
    return differing


def _say_of_pictures(case: Case, variant: Variant, found: dict[str, str]) -> None:
    for name, text in found.items():
        if name.endswith(".png"):
            print(f"{case.name}: {variant}: {name} differs, as it may: {text}")


# --- Speed -------------------------------------------------------------------------------------------------


def cpu_seconds(checkout: Checkout, words: list[str]) -> float:
    """Return the CPU time of a run on one rank, its launcher included."""
    earlier = resource.getrusage(resource.RUSAGE_CHILDREN)
    failure = run(checkout, words, 1)
    if failure:
        raise NoComparison(f"{checkout.folder}: {failure}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - earlier.ru_utime - earlier.ru_stime


def compare_speed(given: argparse.Namespace, before: Before) -> int:
    """Print how much CPU time AFTER takes beside BEFORE, in interleaved pairs; return how many are slower.

    Of 7 pairs the least and the greatest ratio hold the median of all between them with 98 % probability.
    """
    checkouts = (before.checkout, Checkout(given.after, before.checkout.python))
    slower = 0
    for name in SPEED:
        case = NAMED[name]
        before.result(case)
        out = given.work / "speed"
        taken: tuple[list[float], list[float]] = ([], [])
        # The first run of each may compile, and finds files that are in no memory yet: it does not count.
        for pair in range(-1, PAIRS):
            for which in (0, 1) if pair % 2 else (1, 0):
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                seconds = cpu_seconds(checkouts[which], before.words(case, out))
                if pair >= 0:
                    taken[which].append(seconds)
        ratios = sorted(after / earlier for earlier, after in zip(*taken, strict=True))
        median = statistics.median(ratios)
        missed = median > SLOWER and ratios[0] > 1
        slower += missed
        print(
            f"{name}: {statistics.median(taken[0]):.2f} and {statistics.median(taken[1]):.2f} CPU-seconds, "
            f"ratio {median:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}){': slower' if missed else ''}",
            flush=True,
        )
        shutil.rmtree(out, ignore_errors=True)
    return slower


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="checkout to compare with, as committed")
    parser.add_argument("after", type=Path, help="checkout to compare")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="that AFTER runs on (default 1)")
    parser.add_argument(
        "--installs",
        type=Path,
        nargs="+",
        default=[Path(sys.prefix)],
        help="environments to use, from here or in AFTER (default: that of this Python)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=launch.REPOSITORY / ".cache" / "compare-checkouts",
        help="folder of what is made (default %(default)s)",
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name this is found in")
    parser.add_argument(
        "--long", action="store_true", help="slow cases too, and all of them in memory as well"
    )
    parser.add_argument("--speed", action="store_true", help="compare CPU time, and nothing else")
    parser.add_argument("--pictures-may-differ", action="store_true", help="say so, and do not count it")
    given = parser.parse_args(words)
    given.before, given.after, given.work = (
        path.resolve() for path in (given.before, given.after, given.work)
    )
    # Not resolved: the Python of an environment knows its own by the path it is started by.
    given.installs = [(path if path.exists() else given.after / path).absolute() for path in given.installs]
    return given


def main(words: list[str] | None = None) -> int:
    """Compare; return the exit status."""
    given = _arguments(words)
    started = time.monotonic()
    cases = [case for case in CASES if re.search(given.only, case.name) and (given.long or not case.long)]
    try:
        if not cases:
            raise NoComparison(f"no case is called like {given.only}")
        for prefix in given.installs:
            for folder in (given.before, given.after):
                Checkout(folder, prefix / "bin" / "python").check()
        before = Before(Checkout(given.before, given.installs[0] / "bin" / "python"), given.work)
        print(f"{given.before} ({before.checkout.commit[:12]}) and {given.after}, in {given.work}")
        bad = compare_speed(given, before) if given.speed else compare(given, before, cases)
    except NoComparison as reason:
        print(f"compare_checkouts: {reason}", file=sys.stderr)
        return 2
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} CPU-seconds in {time.monotonic() - started:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
