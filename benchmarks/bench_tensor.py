"""Weighted tensor fit with its maps: dipy beside ours, CPU time on one core, in one process."""

from __future__ import annotations

import statistics
import time

import numpy as np

#: Volumes and voxels of a size; voxels are few, since dipy takes the same time for each.
SIZES = {"small": (30, 40_000), "hcp": (288, 8_000)}

#: Voxels that dipy fits at a time. Its default, 10,000, makes temporaries of 100 MB, whose page
#: faults took up to three times the CPU time of the fit: dipy is measured at its best.
PEER_STEP = 500

#: With these at 1 the libraries start no threads, whose CPU time would be added up.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def simulate(volumes: int, voxels: int, seed: int = 7):
    """Return bvals, bvecs and Rician signals (volumes, voxels) of random tensors, S0 = 1000, SNR 20."""
    rng = np.random.default_rng(seed)
    bvecs = rng.normal(size=(volumes, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvals = np.full(volumes, 1000.0) if volumes < 100 else rng.choice([1000.0, 2000.0, 3000.0], volumes)
    b0s = max(1, volumes // 16)
    bvals[:b0s], bvecs[:b0s] = 0.0, 0.0
    frames = np.linalg.qr(rng.normal(size=(voxels, 3, 3)))[0]
    diffusivities = rng.uniform(1e-4, 3e-3, (voxels, 3))
    directions = np.einsum("vi,nij->vnj", bvecs, frames)
    signal = 1000 * np.exp(-bvals[:, None] * np.einsum("vnj,nj->vn", directions**2, diffusivities))
    noise = rng.normal(size=(2, *signal.shape)) * 50
    return bvals, bvecs, np.hypot(signal + noise[0], noise[1])


def cpu_seconds(function, *arguments):
    """Return the CPU time of one call, and its result."""
    before = time.process_time()
    result = function(*arguments)
    return time.process_time() - before, result


def fit_with_dipy(model, signal):
    """Fit (voxels, volumes) and return fa, md, ad, rd and the principal directions."""
    fit = model.fit(signal)
    return fit.fa, fit.md, fit.ad, fit.rd, fit.evecs[..., 0]


def fit_with_ours(signal, design):
    """Fit (volumes, voxels) and return the maps."""
    from mpiimg.neuro.kernels import tensor, tensor_maps

    return tensor_maps.tensor_maps(tensor.fit_wls(signal, design), tensor_maps.min_diffusivity(design))


def run(size: str, rounds: int) -> list[dict]:
    """Time both, alternating, and return one row of medians.

    Parameters
    ----------
    size : str
        'small' (30 volumes, one shell) or 'hcp' (288 volumes, three shells).
    rounds : int
        Repetitions of each. Set `THREAD_VARIABLES` to 1 before numpy is imported.

    Returns
    -------
    list of dict
        name, size, peer, voxels, peer_cpu_s, our_cpu_s, ratio.
    """
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    from mpiimg.neuro.kernels import tensor

    volumes, voxels = SIZES[size]
    bvals, bvecs, signal = simulate(volumes, voxels)
    model = TensorModel(gradient_table(bvals, bvecs=bvecs), step=PEER_STEP)
    design = tensor.design_matrix(bvals, bvecs)
    voxel_major = np.ascontiguousarray(signal.T)
    # Compiles ours, and lets both take their memory from the system.
    fit_with_ours(signal, design)
    fit_with_dipy(model, voxel_major)
    peer_times, our_times = [], []
    for _ in range(rounds):
        seconds, (fa, *_) = cpu_seconds(fit_with_dipy, model, voxel_major)
        peer_times.append(seconds)
        seconds, maps = cpu_seconds(fit_with_ours, signal, design)
        our_times.append(seconds)
        if not np.abs(maps.fa - fa).max() <= 1e-6:
            raise ArithmeticError("our FA and dipy's differ by more than 1e-6")
    peer, ours = statistics.median(peer_times), statistics.median(our_times)
    return [
        {
            "name": "tensor fit",
            "size": size,
            "peer": "dipy TensorModel",
            "voxels": voxels,
            "peer_cpu_s": peer,
            "our_cpu_s": ours,
            "ratio": peer / ours,
        }
    ]
