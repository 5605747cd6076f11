"""Noise level: which of the ways to it is taken, and what is said of that.

The residual of the tensor fit inside the brain (noise_fit.py) is held against PIESNO in the background
(noise_background.py); where neither can be used, dipy's estimate by volume stands in (noise_estimate.py). A
number or a map may be given instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpiimg.engine.parameters import number_in
from mpiimg.engine.stage import Found, Stages
from mpiimg.errors import BadInput
from mpiimg.neuro.nifti import Image, open_image, same_space
from mpiimg.neuro.noise_background import Background, count_zeros, piesno
from mpiimg.neuro.noise_estimate import ESTIMATE_CORRECTION, estimate
from mpiimg.neuro.noise_fit import FitLevel, fit_level, volumes_problem
from mpiimg.neuro.noise_map import map_level
from mpiimg.neuro.subject import Noise, Subject, mask_of

PAPERS = (
    "PIESNO: Koay et al. 2009, doi:10.1016/j.jmr.2009.03.005",
    "IWLS: Veraart et al. 2013, doi:10.1016/j.neuroimage.2013.05.028",
)

#: CPU-seconds per voxel of a series.
RATES: Mapping[str, tuple[float, str]] = {
    "piesno": (2.0e-9, "mpiimg.neuro.noise_background:sample_piesno"),
    "estimate": (1.2e-8, "mpiimg.neuro.noise_estimate:sample_estimate"),
    "noise-fit": (2.0e-8, "mpiimg.neuro.noise_fit:sample_fit"),
}

#: Ways to find the noise level.
METHODS = ("auto", "fit", "piesno", "estimate", "study")

#: Noise levels that a user may give, in image units, whose squares no single-precision number loses.
SIGMA_LIMITS = (1e-12, 1e12)

#: PIESNO and the residual of the fit agree within this factor: pulsation, motion and what a tensor does not
#: describe are in the residual too.
MAX_RATIO = 1.5


def parse(text: str) -> str | float | Path:
    """Return the method, or the number or the map that the user gave.

    Raises
    ------
    BadInput
        It is none of them.
    """
    if text in METHODS:
        return text
    number = number_in(text)
    low, high = SIGMA_LIMITS
    if number is not None and low <= number <= high:
        return float(number)
    if number is None and text.endswith((".nii", ".nii.gz", ".h5")):
        return Path(text)
    raise BadInput(
        f"--sigma {text}: give {', '.join(METHODS)}, a positive number, between {low:g} and {high:g}, "
        "or the NIfTI of a map (.nii, .nii.gz)"
    )


def check_coils(method: str | float | Path, coils: int | None) -> None:
    """Refuse a number of coils that dipy knows no correction for.

    Raises
    ------
    BadInput
        It knows none.
    """
    if coils is None or not isinstance(method, str):
        return
    if method in ("auto", "estimate", "study") and coils not in ESTIMATE_CORRECTION:
        raise BadInput(f"--coils {coils}: choose one of {', '.join(map(str, ESTIMATE_CORRECTION))}")
    if method != "estimate" and coils < 1:
        raise BadInput(f"--coils {coils}: PIESNO needs at least one; --sigma estimate works without")


def inspect(subject: Subject, method: str | float | Path, step: str) -> Image | None:
    """Look whether the noise level can be found, or used; return the image of a map.

    Raises
    ------
    BadInput
        It cannot.
    """
    if method in ("auto", "fit", "piesno", "study"):
        mask_of(subject, step)
    if method == "fit" and volumes_problem(subject.gradients):
        raise BadInput(f"{subject.original.path}: --sigma fit: {volumes_problem(subject.gradients)}")
    if not isinstance(method, Path):
        return None
    sigma = open_image(method, 3, "map of the noise level")
    difference = same_space(subject.image, sigma)
    if difference:
        raise BadInput(
            f"{method}: this map of the noise level is not in the space of {subject.original.path}: "
            f"they differ in {difference}"
        )
    return sigma


def noise_level(
    subject: Subject, method: str | float | Path, coils: int | None, sigma_image: Image | None
) -> Stages[Noise]:
    """Yield how the noise level is found.

    Parameters
    ----------
    subject : Subject
        With `dwi`, and with `mask` where the method needs one.
    method : str, float or Path
        As from :func:`parse`.
    coils : int, optional
        Receiver coils of the noise distribution.
    sigma_image : Image, optional
        As from :func:`inspect`.
    """
    if isinstance(method, float):
        return Noise(np.full((1, 1), method), "given", method)
    if sigma_image is not None:
        return (yield from map_level(subject.image, sigma_image, subject.mask))
    way = {"study": _as_the_study, "estimate": _estimated}.get(method, _measured)
    return (yield from way(subject, method, coils))


def _measured(subject: Subject, method: str, coils: int | None) -> Stages[Noise]:
    """Yield the residual of the fit, PIESNO, and what is left where neither can be used."""
    image, dwi, mask = subject.image, subject.dwi, subject.mask
    fitted, problem = None, volumes_problem(subject.gradients)
    if method != "piesno" and not problem:
        # None stands for what nobody knows yet: a plan has every stage that may come.
        fitted = yield fit_level(image, dwi, mask, subject.gradients, method == "fit")
    if method == "fit":
        return _of_fit(fitted or FitLevel(1.0, 0, 0.0))

    def conclude(background: Background) -> Found[Noise | None]:
        if method == "piesno":
            return _only_background(image, background)
        return choose(str(image.path), fitted, problem or (fitted.problem if fitted else ""), background)

    expected = Noise(np.ones((1, 1)), "piesno", 1.0) if method == "piesno" else None
    noise = yield piesno(image, dwi, mask.array, coils or 1, conclude, expected)
    if noise is None:
        noise = yield from _estimated(subject, method, coils)
    return noise


def choose(path: str, fitted: FitLevel | None, problem: str, background: Background) -> Found[Noise | None]:
    """Choose between the residual of the fit and PIESNO, and say what speaks against the choice.

    Parameters
    ----------
    path : str
        Of the image, for messages.
    fitted : FitLevel, optional
    problem : str
        Why the residual of the fit cannot be used; empty where it can.
    background : Background

    Returns
    -------
    Found
        Its value is None where neither can be used.
    """
    advice = "give --sigma NUMBER or MAP if you know it"
    if problem and background.sigma is None:
        text = (
            f"{path}: {problem}; and {background.problem}; so the noise level is estimated volume by volume, "
            f"a biased guess: {advice}"
        )
        return Found(None, warnings=(text,))
    if problem:
        note = f"{path}: the noise level is PIESNO's, {background.level:.4g}: {problem}"
        return Found(_of_background(background), background.warnings, (note,))
    noise = _of_fit(fitted)
    if background.sigma is None:
        text = (
            f"{path}: {background.problem}; the noise level is that of the residual of the tensor fit, "
            f"{fitted.sigma:.4g}, and nothing confirms it: {advice}"
        )
        return Found(noise, warnings=(text,))
    found = {"fit": fitted.sigma, "piesno": background.level}
    if 1 / MAX_RATIO <= fitted.sigma / background.level <= MAX_RATIO:
        return Found(_of_background(background, found), background.warnings)
    text = (
        f"{path}: the residual of the tensor fit says a noise level of {fitted.sigma:.4g}, and PIESNO in the "
        f"background one of {background.level:.4g}: they are more than {MAX_RATIO:g} x apart; that of the "
        f"brain, {fitted.sigma:.4g}, is taken; {advice}"
    )
    return Found(_of_fit(fitted, found), warnings=(text,))


def _of_fit(fitted: FitLevel, found: Mapping[str, float] | None = None) -> Noise:
    sigma = fitted.sigma
    return Noise(np.full((1, 1), sigma), "fit", sigma, found or {"fit": sigma})


def _of_background(background: Background, found: Mapping[str, float] | None = None) -> Noise:
    return Noise(background.sigma, "piesno", background.level, found or {"piesno": background.level})


def _only_background(image: Image, background: Background) -> Found[Noise]:
    """Take what PIESNO says, because the user asked for it."""
    if background.sigma is None:
        raise BadInput(f"{image.path}: {background.problem}; use --sigma fit or --sigma NUMBER")
    return Found(_of_background(background), background.warnings)


def _estimated(subject: Subject, method: str, coils: int | None) -> Stages[Noise]:
    sigma = yield estimate(subject.image, subject.dwi, coils or 0)
    return Noise(sigma, "estimate", float(np.median(sigma)))


def _as_the_study(subject: Subject, method: str, coils: int | None) -> Stages[Noise]:
    """Yield PIESNO of whole slices where the background was not zeroed, else the estimate by volume."""
    image, dwi, mask = subject.image, subject.dwi, subject.mask.array

    def warning(reason: str) -> str:
        return (
            f"{image.path}: {reason}; the noise level is estimated volume by volume, a biased guess: "
            "give --sigma NUMBER if you know it"
        )

    def conclude(background: Background) -> Found[Noise | None]:
        if background.sigma is None:
            return Found(None, warnings=(warning(background.problem),))
        return Found(_of_background(background), background.warnings)

    has_background = yield count_zeros(image, dwi, mask, warning)
    noise = None
    if has_background is not False:
        noise = yield piesno(image, dwi, mask, coils or 1, conclude, None, whole_slices=True)
    if noise is None:
        noise = yield from _estimated(subject, method, coils)
    return noise
