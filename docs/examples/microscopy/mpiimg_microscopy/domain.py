"""The domain: what is known of a stack of frames, where it comes from, and the pipeline."""

from dataclasses import dataclass

from mpiimg.engine import Argument, Array, Domain, Pipeline, Source, State
from mpiimg.formats.registry import read

STEPS = ("flatfield", "register", "project", "count")


@dataclass(frozen=True, kw_only=True)
class Timelapse(State):
    """Frames (t, y, x), their projection (y, x), and the cells in it: (y, x, area) in pixels."""

    frames: Array
    projection: Array | None = None
    cells: tuple[tuple[float, float, int], ...] = ()


def open_stack(paths, parameters, taken):
    """Read the header of a stack, on one rank."""
    stack = read(paths["stack"], "frames", axes=("tyx",))
    return Timelapse(stem=stack.path.stem, inputs=(stack,), frames=stack.array)


FRAMES = Argument("stack", "The frames: a TIFF with a page for each.", positional=True)

DOMAIN = Domain(
    name="microscopy",
    state=Timelapse,
    sources=(Source("stack of frames", gives=("frames",), arguments=(FRAMES,), inspect=open_stack),),
    steps={name: f"mpiimg_microscopy.steps:{name}" for name in STEPS},
    pipelines={"timelapse": Pipeline("Count the cells in a stack of frames.", STEPS)},
)
