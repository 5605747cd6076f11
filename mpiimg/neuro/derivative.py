"""What a derivative of a BIDS dataset says of itself, and of what each of its images was made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from mpiimg.neuro.bids import Scan, read_description
from mpiimg.version import __version__

#: The version of the standard that outputs follow.
BIDS_VERSION = "1.11.0"

#: What validators are to pass over: maps, whose names BIDS has only proposed so far (BEP 16), and among them
#: the table of the volumes. Everything else has a name of the standard.
BIDS_IGNORED = ("*_dwimap.nii.gz", "*_dwimap.json", "*_dwimap.tsv", "*_dwimap.npz", "report.html")

#: What a step calls gradients, and BIDS, where they have no `desc`: they apply to each series of the scan by
#: the inheritance principle.
GRADIENTS, GRADIENTS_IN_BIDS = "_desc-denoised_dwi.bv", "_dwi.bv"

README = """\
# Diffusion MRI by mpiimg-neuro {version}

Made from the dataset "{name}"; `dataset_description.json` says where that lies (`DatasetLinks`).

| file | what it is |
|---|---|
| `*_desc-brain_mask.nii.gz` | brain mask |
| `*_desc-volumes_dwimap.tsv` | what was found of each volume, and which were left out |
| `*_desc-denoised_dwi.nii.gz` | the denoised series, with `*_dwi.bval` and `*_dwi.bvec` as its gradients |
| `*_desc-noise_dwimap.nii.gz` | standard deviation of the noise |
| `*_model-tensor_param-*_dwimap.nii.gz` | maps of the diffusion tensor |
| `logs/` | settings, and for each scan its record, its events and what became of it |
| `logs/group_dwi.tsv` | a row for each scan with its figures, if the level group was run |

The JSON beside an image says how it was made (`Method`, `Reference`), in which unit (`Units`) and of which
files (`Sources`). That of the denoised series also has what the raw sidecars say of the acquisition, such as
`PhaseEncodingDirection` and `TotalReadoutTime`, so that topup and eddy can follow.

`.bidsignore` names maps alone: `dwimap` is a name that BIDS has only proposed (BEP 16).
`mpiimg-status` lists every scan of this folder: done, passed over, broken or failed, with the reason.
"""


def describe_derivative(dataset: Path, out: Path) -> dict[str, bytes]:
    """Return the files at the top of a derivative of `dataset` in `out`, by name."""
    source = read_description(dataset)
    link = quote(Path(os.path.relpath(dataset.resolve(), out.resolve())).as_posix())
    origin: dict[str, str] = {"URL": link}
    if isinstance(source.get("DatasetDOI"), str):
        origin["DOI"] = source["DatasetDOI"]
    # What the data may be used for, and whose they are, changes no more than where they come from.
    of_source = {name: source[name] for name in ("License", "Authors") if name in source}
    described = {
        "Name": f"mpiimg-neuro: brain mask, denoised diffusion MRI and tensor maps of {source['Name']}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "mpiimg-neuro",
                "Version": __version__,
                "Description": "Brain mask, non-local means denoising, diffusion tensor",
            }
        ],
        "SourceDatasets": [origin],
        "DatasetLinks": {"raw": link},
        **of_source,
    }
    return {
        "dataset_description.json": json.dumps(described, indent=2).encode() + b"\n",
        ".bidsignore": "\n".join(BIDS_IGNORED).encode() + b"\n",
        "README.md": README.format(version=__version__, name=source["Name"]).encode(),
    }


def sources(dataset: Path, scan: Scan) -> list[str]:
    """Return the BIDS URIs of the files that the results of a scan were made of."""
    paths = (scan.dwi, scan.bval, scan.bvec)
    return [f"bids:raw:{path.relative_to(dataset).as_posix()}" for path in paths if path is not None]


def as_derivative(files: Mapping[str, bytes], uris: list[str]) -> dict[str, bytes]:
    """Return the small files of a scan as a derivative has them.

    Parameters
    ----------
    files : mapping of str to bytes
        By name, as they stand beside the results of a single image.
    uris : list of str
        As :func:`sources` gives them, for the sidecars.
    """
    made = {}
    for name, data in files.items():
        if name.endswith(".json"):
            data = json.dumps({**json.loads(data), "Sources": uris}, indent=2).encode() + b"\n"
        made[name.replace(GRADIENTS, GRADIENTS_IN_BIDS)] = data
    return made
