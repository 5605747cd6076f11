"""The noise level of real images by each way to it, and one head in four states: prints Markdown tables.

    python benchmarks/noise.py [DIR] [--ranks 2]

DIR holds diffusion series, each an image with .bval and .bvec (or bvals.txt and bvecs.txt) beside it, in any
subfolders; dipy's own small series are looked at as well. Every figure comes from the tools themselves, run
here, and the reference from MRtrix3's dwidenoise where that is installed. The four heads are made of the
first series with volumes enough for a residual and 2000 voxels or more outside the mask. docs/noise.md holds
a run of it, and what to learn from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

BIN = Path(__file__).resolve().parent.parent / "bin"

#: Ways to the noise level, in the order of the table.
WAYS = ("auto", "fit", "piesno", "estimate", "study")

#: Series with more voxels outside the mask than this have a background to take away.
MIN_BACKGROUND = 2000

#: A median filter small enough for small images.
SMALL = ("--median-radius", "2")


@dataclass(frozen=True)
class Series:
    """A diffusion series on disk."""

    name: str
    dwi: Path
    bvals: Path
    bvecs: Path

    @property
    def words(self) -> list:
        """What the tools are given."""
        return [self.dwi, "--bvals", self.bvals, "--bvecs", self.bvecs]


def tool(name: str, *words, ranks: int) -> str:
    """Run one of the tools; return what it says, or raise RuntimeError with that."""
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, str(BIN / name), *map(str, words), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stderr


def series_in(folder: Path | None) -> Iterator[Series]:
    """Yield the series of a folder, and those that dipy brings along."""
    for dwi in sorted(folder.rglob("*.nii*")) if folder else ():
        base = dwi.name.removesuffix(".gz").removesuffix(".nii")
        for bvals, bvecs in ((f"{base}.bval", f"{base}.bvec"), ("bvals.txt", "bvecs.txt")):
            if dwi.with_name(bvals).exists() and dwi.with_name(bvecs).exists():
                yield Series(base, dwi, dwi.with_name(bvals), dwi.with_name(bvecs))
                break
    from dipy.data import get_fnames

    for name in ("small_64D", "small_101D"):
        yield Series(f"dipy's {name}", *map(Path, get_fnames(name=name)))


def mask_of(series: Series, folder: Path, ranks: int) -> Path:
    """Make the mask of a series; return its file."""
    tool("mpiimg-mask", *series.words, *SMALL, "--out", folder, ranks=ranks)
    return next(folder.glob("*_mask.nii.gz"))


def levels_of(series: Series, mask: Path, folder: Path, ranks: int) -> dict[str, str]:
    """Return the noise level by each way, as text."""
    found = {}
    for way in WAYS:
        out = folder / way
        words = (*series.words, "--mask", mask, "--sigma", way, "--block-radius", 2, "--out", out)
        try:
            tool("mpiimg-denoise", *words, ranks=ranks)
        except RuntimeError:
            found[way] = "refused"
            continue
        said = json.loads(next(out.glob("*_desc-noise_dwimap.json")).read_text())
        found[way] = f"{said['NoiseLevel']:.3g}"
        if way in ("auto", "study"):
            found[way] += f" ({said['NoiseMethod']})"
    return found


def reference_of(series: Series, mask: Path, folder: Path) -> str:
    """Return the median in the mask of the map that dwidenoise makes, where that is installed."""
    if shutil.which("dwidenoise") is None:
        return "not installed"
    noise = folder / "reference.nii"
    command = ["dwidenoise", series.dwi, folder / "ignored.nii", "-noise", noise, "-quiet", "-force"]
    subprocess.run(command, check=True, capture_output=True)
    values = np.asarray(nibabel.load(noise).dataobj)[np.asarray(nibabel.load(mask).dataobj) != 0]
    return f"{np.median(values[np.isfinite(values)]):.3g}"


def four_heads(series: Series, mask: Path) -> Mapping[str, np.ndarray]:
    """Return a head as scanned, stripped, with its background zeroed, and that with one hot voxel."""
    from scipy.ndimage import binary_dilation

    image = nibabel.load(series.dwi)
    data, inside = np.asarray(image.dataobj), np.asarray(nibabel.load(mask).dataobj) != 0
    stripped = data * inside[..., None].astype(data.dtype)
    zeroed = data * binary_dilation(inside, iterations=4)[..., None].astype(data.dtype)
    hot = zeroed.copy()
    hot[0, 0, 0] = 65535 if data.dtype == np.uint16 else np.iinfo(np.int16).max
    return {
        "as scanned": data,
        "skull-stripped": stripped,
        "background zeroed": zeroed,
        "and one hot voxel": hot,
    }


def head_rows(series: Series, mask: Path, folder: Path, ranks: int) -> list[dict[str, float | str]]:
    """Process the four heads in one mask; return noise level, way and mean FA of each.

    FA is that of the mask of the head as scanned, eroded by 2.
    """
    from scipy.ndimage import binary_erosion

    image = nibabel.load(series.dwi)
    core = binary_erosion(np.asarray(nibabel.load(mask).dataobj) != 0, iterations=2)
    rows = []
    for number, (state, data) in enumerate(four_heads(series, mask).items()):
        dwi, out = folder / f"head-{number}.nii.gz", folder / f"maps-{number}"
        nibabel.save(nibabel.Nifti1Image(data, image.affine, image.header), dwi)
        head = Series(state, dwi, series.bvals, series.bvecs)
        tool("mpiimg-neuro", *head.words, "--mask", mask, "--out", out, ranks=ranks)
        said = json.loads(next(out.glob("*_desc-noise_dwimap.json")).read_text())
        fa = np.asarray(nibabel.load(next(out.glob("*_param-fa_dwimap.nii.gz"))).dataobj)
        rows.append(
            {
                "head": state,
                "sigma": said["NoiseLevel"],
                "way": said["NoiseMethod"],
                "fa": float(fa[core].mean()),
            }
        )
    return rows


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def report(data: Path | None, ranks: int, folder: Path) -> Iterator[str]:
    """Yield both tables."""
    rows, whole = [], None
    for number, series in enumerate(series_in(data)):
        place = folder / str(number)
        mask = mask_of(series, place / "mask", ranks)
        levels = levels_of(series, mask, place, ranks)
        shape = "x".join(map(str, nibabel.load(series.dwi).shape))
        rows.append([series.name, shape, *levels.values(), reference_of(series, mask, place)])
        outside = np.count_nonzero(np.asarray(nibabel.load(mask).dataobj) == 0)
        if whole is None and outside >= MIN_BACKGROUND and levels["fit"] != "refused":
            whole = series, mask, place
    yield table(["series", "shape", *WAYS, "dwidenoise"], rows)
    if whole is None:
        yield "NO WHOLE HEAD: no series has a background, so there is no table of the four heads."
        return
    heads = head_rows(*whole, ranks)
    cells = [[row["head"], f"{row['sigma']:.3g}", row["way"], f"{row['fa']:.4f}"] for row in heads]
    yield table(["head", "noise level", "by", "mean FA"], cells)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "data", type=Path, nargs="?", help="folder with diffusion series; without it only dipy's"
    )
    parser.add_argument("--ranks", type=int, default=1)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mpiimg-noise-") as folder:
        print("\n\n".join(report(given.data, given.ranks, Path(folder))))


if __name__ == "__main__":
    main()
