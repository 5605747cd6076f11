"""Copying an image into a staged HDF5 file, which any rank reads in any order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.inputs import parallel
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.stage import Stages
from mpiimg.engine.staged_file import DATASET
from mpiimg.neuro.images import inflate, lay_out
from mpiimg.neuro.nifti import Image, Voxels, open_image
from mpiimg.neuro.pipelines import DOMAIN
from mpiimg.neuro.staged import staged_attributes
from mpiimg.neuro.subject import identity


def inspect(dwi: str | Path) -> Image:
    """Read the header of a diffusion image.

    Raises
    ------
    BadInput
        It cannot be used.
    """
    return open_image(Path(dwi), 4, "diffusion image")


def stage_recipe(image: Image, staged: str | Path, parameters: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the copy.

    Parameters
    ----------
    image : Image
        The image to copy.
    staged : str or Path
        The file to write (.h5); the run's folder of results is the folder that it lies in.
    parameters : mapping
        What run.json says of the run.
    """
    target = Path(staged)
    # An array is staged in a file of its own name; a stream goes straight into the one that is the result.
    voxels = Voxels(image, "input" if image.parallel else DATASET)
    kept = staged_attributes(image.header, image.stem, image.identity, image.dw_scheme)

    def stages() -> Stages[None]:
        yield lay_out(voxels.array, image.array(DATASET)) if voxels.parallel else inflate(voxels)

    return Recipe(
        tool="mpiimg-stage",
        stem=target.stem,
        inputs=parallel((voxels,)),
        stages=stages,
        documents=lambda state: {},
        parameters=parameters,
        sources={"image": identity(image)},
        warnings=image.words,
        record=f"{target.name}.json",
        staged_outputs={DATASET: (target.name, kept)},
        rates={name: seconds for name, (seconds, _) in DOMAIN.rates.items()},
        files=voxels.files,
    )
