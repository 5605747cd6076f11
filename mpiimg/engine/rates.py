"""How fast this machine is: CPU-seconds a unit of work, which predictions of time are made from.

A stage declares what it costs in units of a rate (voxels times offsets, pixels, bytes). The defaults were
measured on one core of an AMD EPYC (Zen 4). `mpiimg-doctor --rates` measures the machine it runs on, and
keeps what it finds in the user's cache, by CPU model and version of mpiimg. Rates decide nothing but the
times that a plan prints: with wrong ones a run does the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import mpiimg

Rates = dict[str, float]

#: CPU-seconds a unit.
DEFAULTS: Rates = {
    # what somebody else has timed, such as the trial of a user's function
    "second": 1.0,
    # bytes
    "pass": 1.0e-9,
    "move": 1.0e-9,
    "stage": 1.0e-9,
    "network": 1.0e-9,
    "inflate": 2.2e-9,
    "deflate": 3.3e-9,
    # voxels, times what is looked at for each
    "median": 3.3e-9,
    "nlmeans": 8.0e-10,
    "piesno": 2.0e-9,
    "estimate": 1.2e-8,
    "fit-wls": 8.0e-9,
    "fit-ols": 5.5e-9,
    "fit-nlls": 2.0e-6,
    "fit-restore": 4.0e-6,
    # pixels
    "calibrate": 1.5e-7,
    "warp": 2.0e-8,
    "weigh": 3.5e-9,
    "coadd": 3.5e-9,
    "detect": 1.8e-7,
}


def cpu_model(information: str = "/proc/cpuinfo") -> str:
    """Return the model of this machine's CPU, as the kernel names it."""
    for line in Path(information).read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def path() -> Path:
    """Return the file that measured rates are kept in."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mpiimg" / "rates.json"


def load() -> Rates:
    """Return the rates of this machine: those that were measured, defaults for the others."""
    try:
        kept = json.loads(path().read_text())[_key()]
        measured = {name: float(kept[name]) for name in DEFAULTS if name in kept}
    except (OSError, ValueError, KeyError, TypeError):
        return dict(DEFAULTS)
    return DEFAULTS | {name: rate for name, rate in measured.items() if 0 < rate < 1}


def store(rates: Rates) -> Path:
    """Keep the rates of this machine in the user's cache, beside those of others; return the file."""
    file = path()
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        kept = {}
    kept = kept if isinstance(kept, dict) else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_text(json.dumps({**kept, _key(): rates}, indent=1) + "\n")
    part.replace(file)
    return file


def _key() -> str:
    return f"{cpu_model()}, mpiimg {mpiimg.__version__}"


def measure() -> Rates:
    """Time one chunk of each kind of work on this core, once it is compiled; takes some seconds."""
    rates = {name: _rate(*sample()) for name, sample in SAMPLES.items()}
    return {name: float(f"{rate:.3g}") for name, rate in rates.items()}


def _rate(work: Callable[[], object], units: float) -> float:
    """Return CPU-seconds a unit, the better of two after one that compiles."""
    work()
    taken = []
    for _ in range(2):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return max(min(taken), 1e-6) / units


def _image(shape: tuple[int, ...]):
    """Return an image that is nowhere, and its voxels: noise about a bright ball."""
    import nibabel

    from mpiimg.neuro.nifti import Image

    header = nibabel.Nifti1Header()
    header["magic"] = b"n+1"
    rng = np.random.default_rng(1)
    z, y, x = (np.linspace(-1, 1, n) for n in shape[-3:])
    ball = 900.0 * ((z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) < 0.5)
    voxels = np.hypot(ball + rng.normal(0, 40, shape), rng.normal(0, 40, shape)).astype(np.int16)
    return Image(
        Path("none.nii"), "nii", "none", shape, "<i2", 352, 1.0, 0.0, header.binaryblock, (0, 0, 0)
    ), voxels


def _chunk(stage, number: int, *blocks):
    """Return the work on a chunk, and how many of its rate's units that is."""
    weights = stage.weights or (1,) * len(stage.grid)
    return lambda: stage.work(stage.chunk(number), *blocks), stage.cost[1] * weights[number] / sum(weights)


def _inflating():
    from isal import igzip

    from mpiimg.neuro.nifti import gzip_member

    _, voxels = _image((1, 16, 128, 128))
    data = gzip_member(voxels.tobytes())
    return lambda: igzip.decompress(data), voxels.nbytes


def _deflating():
    from mpiimg.neuro.nifti import gzip_member

    _, voxels = _image((1, 16, 128, 128))
    data = voxels.astype(np.float32).tobytes()
    return lambda: gzip_member(data), len(data)


def _median():
    from mpiimg.neuro.steps.mask import median, volume

    image, voxels = _image((24, 64, 64))
    stage = median(image, volume(image, "b0", "float32"), 1, 4)
    return _chunk(stage, 0, voxels[:6].astype(np.float32))


def _nlmeans():
    from mpiimg.neuro.steps.denoise import denoise
    from mpiimg.neuro.steps.mask import volume

    image, voxels = _image((1, 16, 64, 64))
    offsets = tuple(64 * 64 * z for z in range(17))
    stage = denoise(
        image, image.array("dwi"), volume(image, "mask", "uint8"), offsets, np.full((1, 1), 40.0), 1, 5, True
    )
    return _chunk(stage, 1, voxels[:, :13], np.ones((4, 64, 64), np.uint8))


def _piesno():
    from mpiimg.neuro.steps.mask import volume
    from mpiimg.neuro.steps.noise import piesno

    image, voxels = _image((32, 1, 96, 96))
    stage = piesno(image, image.array("dwi"), volume(image, "mask", "uint8"), 1, "auto")
    return _chunk(stage, 0, voxels, np.zeros((1, 96, 96), np.uint8))


def _estimate():
    from mpiimg.neuro.steps.noise import estimate

    image, voxels = _image((1, 32, 64, 64))
    return _chunk(estimate(image, image.array("dwi"), 0), 0, voxels)


def _fitting(method: str, side: int):
    def sample():
        from mpiimg.engine.stage import Need
        from mpiimg.neuro.gradients import Gradients
        from mpiimg.neuro.steps.fit import fit

        image, voxels = _image((64, 1, side, side))
        rng = np.random.default_rng(2)
        bvecs = rng.normal(size=(64, 3))
        bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
        bvals = np.where(np.arange(64) % 8 == 0, 0.0, 1000.0)
        gradients = Gradients(tuple(bvals), tuple(map(tuple, np.where(bvals[:, None] > 0, bvecs, 0))), 50.0)
        stage = fit(
            image,
            (Need(image.array("dwi")),),
            (0, side * side),
            gradients,
            tuple(range(64)),
            method,
            1e-4,
            "bvec",
            "dipy",
            40.0,
        )
        return _chunk(stage, 0, voxels.reshape(64, -1).astype(np.float32))

    return sample


def _sky(side: int = 512):
    """Return image, variance and mask of a frame of stars with cosmic rays."""
    rng = np.random.default_rng(3)
    image = rng.normal(200, 14, (side, side))
    y, x = np.mgrid[-6:7, -6:7]
    star = np.exp(-(x**2 + y**2) / 4.5)
    for row, column in rng.integers(8, side - 8, (side * side // 4000, 2)):
        image[row - 6 : row + 7, column - 6 : column + 7] += rng.exponential(3000) * star
    rows, columns = rng.integers(0, side, (2, side * side // 2000))
    image[rows, columns] += 2000
    return image.astype(np.float32), np.full((side, side), 200, np.float32), np.zeros((side, side), np.int32)


def _calibrating():
    from mpiimg.astro.kernels.cosmics import detect_cosmics
    from mpiimg.astro.photometry.stars import measure_frame

    image, variance, mask = _sky()
    nothing = mask != 0

    def work():
        struck, clean = detect_cosmics(
            image, mask=nothing, variance=variance, gain=1.0, readnoise=0.0, satlevel=np.inf
        )
        measure_frame(clean, variance, struck, nothing)

    return work, image.size


def _warping():
    from mpiimg.astro.kernels import warp

    image, variance, mask = _sky()
    side = image.shape[0] - 64
    rows, columns = np.indices((side // warp.STEP + 3,) * 2) * float(warp.STEP) + 0.4
    nodes = warp.Nodes(columns, rows, 0, 0)
    box = ((warp.STEP, side), (warp.STEP, side))
    return lambda: warp.warp(image, variance, mask, nodes, box, np.float64(1), 1), (side - warp.STEP) ** 2


def _coadding():
    from mpiimg.astro.kernels.coadd import Planes, coadd

    image, variance, mask = (np.stack([plane[:256]] * 6) for plane in _sky())
    return lambda: coadd(image, variance, mask, np.ones(6), Planes(1, 2, 4, 8)), image.size


def _weighing():
    _, variance, _ = _sky()

    def work():
        good = variance[np.isfinite(variance) & (variance > 0)]
        return 1 / np.median(good)

    return work, variance.size


def _detecting():
    from mpiimg.astro.photometry.sources import Settings
    from mpiimg.astro.sky.layout import Layout, Patch
    from mpiimg.astro.steps.detect import detect

    planes = (*_sky(), np.ones((512, 512), np.int16))
    patch = Patch("r", (0, 0), ((0, 512), (0, 512)), ((20, 492), (20, 492)))
    stage = detect(Layout((), (patch,), ()), Settings())
    return _chunk(stage, 0, *([plane.ravel()] for plane in planes))


#: What is measured: each returns the work to time, and its units.
SAMPLES: dict[str, Callable] = {
    "inflate": _inflating,
    "deflate": _deflating,
    "median": _median,
    "nlmeans": _nlmeans,
    "piesno": _piesno,
    "estimate": _estimate,
    "fit-wls": _fitting("wls", 64),
    "fit-ols": _fitting("ols", 64),
    "fit-nlls": _fitting("nlls", 8),
    "calibrate": _calibrating,
    "warp": _warping,
    "weigh": _weighing,
    "coadd": _coadding,
    "detect": _detecting,
}
