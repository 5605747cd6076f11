"""What was done, in words that can stand in a paper, with what to cite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mpiimg.neuro.report.results import Scan

#: Of the tools that everything stands on.
ALWAYS = "mpiimg {version} (on {libraries})"


def paragraph(scan: Scan) -> str:
    """Return a paragraph on the methods of all steps that have left results."""
    sentences = [_mask(scan), _volumes(scan), _denoised(scan), _fit(scan)]
    run = scan.runs[-1].record
    libraries = run.get("libraries") if isinstance(run.get("libraries"), Mapping) else {}
    stood_on = ", ".join(
        f"{name} {libraries[name]}" for name in ("numpy", "scipy", "dipy") if name in libraries
    )
    made = ALWAYS.format(version=run.get("version", "?"), libraries=stood_on)
    return f"Diffusion MRI was processed with {made}. " + " ".join(filter(None, sentences))


def references(scan: Scan) -> list[str]:
    """Return what to cite, each once, with its DOI."""
    endings = (
        "_desc-brain_mask.json",
        "_desc-denoised_dwi.json",
        "_desc-noise_dwimap.json",
        "_model-tensor_param-fa_dwimap.json",
        "_desc-qc_dwimap.json",
    )
    found: dict[str, None] = {}
    for ending in endings:
        text = str(scan.fields(ending).get("Reference", ""))
        found |= dict.fromkeys(one for one in re.split(r"; (?=[^;]*?doi:|[A-Z])", text) if one)
    return list(found)


def _mask(scan: Scan) -> str:
    fields = scan.fields("_desc-brain_mask.json")
    if not fields:
        return ""
    method = str(fields.get("Method", "given")).rstrip(".")
    size = f" ({fields['VolumeML']:.0f} ml)" if isinstance(fields.get("VolumeML"), int | float) else ""
    return f"A brain mask{size} was made by {method}."


def _volumes(scan: Scan) -> str:
    rows = scan.volumes
    if not rows:
        return ""
    dropped = sum(row.get("status") == "dropped" for row in rows)
    ndc = scan.figures.get("ndc")
    quality = f" (mean neighbouring DWI correlation {ndc:.2f})" if isinstance(ndc, int | float) else ""
    left_out = f"; {dropped} of {len(rows)} volumes were left out" if dropped else "; none was left out"
    return f"All {len(rows)} volumes were checked for dropped slices and spikes{quality}{left_out}."


def _denoised(scan: Scan) -> str:
    fields = scan.fields("_desc-denoised_dwi.json")
    if not fields:
        return ""
    level = fields.get("NoiseLevel")
    sigma = f", with a noise level of {level:.4g} in image units" if isinstance(level, int | float) else ""
    origin = f" ({fields['NoiseMethod']})" if "NoiseMethod" in fields else ""
    return (
        f"The series was denoised by {fields.get('Method', 'a filter')} (patch radius "
        f"{_word(fields.get('PatchRadius'))}, block radius {_word(fields.get('BlockRadius'))} voxels"
        f"{sigma}{origin}; the Rician bias was {fields.get('RicianBias', 'left in')}), before any "
        "interpolation."
    )


def _fit(scan: Scan) -> str:
    fields = scan.fields("_model-tensor_param-fa_dwimap.json")
    if not fields:
        return ""
    names = {
        "iwls": "iteratively reweighted linear least squares",
        "wls": "weighted linear least squares",
        "ols": "ordinary linear least squares",
        "nlls": "nonlinear least squares",
        "restore": "the RESTORE algorithm",
    }
    method = names.get(str(fields.get("Method")), str(fields.get("Method")))
    shells = fields.get("Shells") or []
    listed = ", ".join(f"{b:.0f}" for b in shells if isinstance(b, int | float))
    return (
        f"A diffusion tensor was fitted in each voxel of the mask by {method} to "
        f"{fields.get('Volumes', '?')} volumes (b = {listed} s/mm²), with signals raised to a floor of "
        f"{_floor(fields)}; fractional anisotropy and mean, axial and radial diffusivity were drawn from it."
    )


def _floor(fields: Mapping[str, Any]) -> str:
    origin = str(fields.get("MinSignalSource", ""))
    return origin or "the smallest that has a logarithm"


def _word(value: Any) -> str:
    return "?" if value is None else str(value)
