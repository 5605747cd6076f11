"""The environment of a tool: what would change results, run others' code or crash is not taken.

It is looked at before any library is imported. What can be put right is, with a line that says so; what
cannot ends the tool with one line. Nothing is changed but this process.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterator, MutableMapping
from importlib.machinery import PathFinder

from mpiimg.engine.mpi.job import launched_rank
from mpiimg.errors import Exit
from mpiimg.kernels.disk import trust

#: Libraries that results are made by.
LIBRARIES = (
    *("numpy", "numba", "llvmlite", "scipy", "mpi4py", "h5py", "astropy", "erfa", "nibabel", "dipy", "sep"),
    *("isal", "deflate", "matplotlib", "PIL"),
)

#: Variables of numba that are taken: none of them changes what is compiled.
OF_NUMBA = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY")

#: Variables by which NumPy and HDF5 compute or store otherwise than they do elsewhere.
OF_OTHERS = (
    *("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "NPY_PROMOTION_STATE"),
    *("HDF5_DRIVER", "HDF5_DRIVER_CONFIG"),
)

#: Variables that are left as they are, though results may depend on them: a site may need them.
LEFT_ALONE = ("LD_PRELOAD", "OPENBLAS_CORETYPE", "HDF5_VOL_CONNECTOR", "HDF5_PLUGIN_PRELOAD")

#: Variables that name folders with code in them.
CODE_FOLDERS = ("NUMBA_CACHE_DIR", "HDF5_PLUGIN_PATH")

#: What was put right in this process, a line each.
notes: list[str] = []


def prepare(environment: MutableMapping[str, str] = os.environ) -> str:
    """Look at the environment, put right what can be, and say that.

    Returns
    -------
    str
        Why no tool can run in it, and what to do; empty where it can.
    """
    open_standard_streams()
    if problem := next(filter(None, problems(environment)), ""):
        return problem
    notes.extend(set_aside(environment))
    if notes and not {"--quiet", "-q"} & {*sys.argv} and _speaks():
        for note in notes:
            sys.stderr.write(f"mpiimg: warning: {note}\n")
    return ""


def refuse(problem: str) -> int:
    """Say once why no tool can run; return the exit status."""
    if _speaks():
        sys.stderr.write(f"mpiimg: error: {problem}\n")
        sys.stderr.flush()
    if sys.flags.inspect:
        # Python would forget the status, and ask for more.
        os._exit(Exit.BAD_INPUT)
    return Exit.BAD_INPUT


def problems(environment: MutableMapping[str, str]) -> Iterator[str]:
    """Yield what no tool can run with."""
    if sys.flags.inspect:
        yield "PYTHONINSPECT is set, with which a program loses its exit status; unset it"
    yield from _problems_of_folders()
    if environment.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        yield "NUMBA_DISABLE_JIT is set, with which kernels would take days; unset it"
    if os.path.lexists(".numba_config.yaml"):
        yield ".numba_config.yaml in this folder changes how kernels are compiled; start from another folder"
    prefix = sys.pycache_prefix
    if prefix and (problem := trust.distrust(prefix)):
        yield f"PYTHONPYCACHEPREFIX={prefix}: {problem}, and so could put code there; unset it"
    yield shadowed(sys.path, environment.get("PYTHONPATH", ""))


def _problems_of_folders() -> Iterator[str]:
    try:
        os.getcwd()
    except OSError as error:
        yield f"the folder that this was started in: {error.strerror}; start from another one"
    mask = os.umask(0o022)
    os.umask(mask)
    if mask & 0o700:
        yield f"the umask {mask:03o} forbids its user to use what a run writes; set it to 022 or 077"


def shadowed(path: list[str], pythonpath: str) -> str:
    """Say which module would be taken from elsewhere than from the install, or from Python itself.

    Parameters
    ----------
    path : list of str
        Where Python looks for modules, in this order.
    pythonpath : str
        PYTHONPATH, to name it.
    """
    installed = [os.path.realpath(place) for place in site.getsitepackages()]
    installed.append(str(trust.PACKAGE.parent))
    named = {os.path.realpath(folder) for folder in pythonpath.split(os.pathsep)} if pythonpath else ()
    # What comes after Python's own modules and the install takes nothing from them.
    own = os.path.realpath(os.path.dirname(os.__file__))
    before_python = True
    for entry in path:
        folder = os.path.realpath(entry or ".")
        if folder in installed[:-1]:
            break
        if folder == own:
            before_python = False
        if folder in (own, installed[-1]) or folder.startswith(own + os.sep):
            continue
        for name in _modules(folder):
            taken_from = next((place for place in installed if _has(place, name)), None)
            if name in LIBRARIES and taken_from:
                return _taken(name, folder, folder in named, f"the install's in {taken_from}")
            if before_python and name in sys.stdlib_module_names:
                return _taken(name, folder, folder in named, "Python's own")
    return ""


def _taken(name: str, folder: str, is_named: bool, right: str) -> str:
    how = f"PYTHONPATH names {folder}, whose" if is_named else f"{folder} is on Python's path, whose"
    return f"{how} {name} would be taken in place of {right}; leave that folder out"


def _modules(folder: str) -> list[str]:
    """Return the modules in question that would be taken from a folder, or from a zip file."""
    try:
        stems = {name.partition(".")[0] for name in os.listdir(folder)}
    except NotADirectoryError:
        stems = {*LIBRARIES, *sys.stdlib_module_names}
    except OSError:
        return []
    asked = [stem for stem in sorted(stems) if stem in LIBRARIES or stem in sys.stdlib_module_names]
    return [name for name in asked if _has(folder, name)]


def _has(folder: str, name: str) -> bool:
    """Say whether Python would take a module of that name there: source, compiled, or a library in C."""
    spec = PathFinder.find_spec(name, [folder])
    # What has no loader is a folder that any other module of the name comes before.
    return spec is not None and spec.loader is not None


def set_aside(environment: MutableMapping[str, str]) -> list[str]:
    """Take out of the environment what changes results or names code of others; return what to say of it."""
    said = []
    for name in CODE_FOLDERS:
        for folder in filter(None, environment.get(name, "").split(os.pathsep)):
            if problem := trust.distrust(folder):
                del environment[name]
                said.append(f"{name} is not taken, since others can put code there: {problem}")
                break
    for name in sorted(environment):
        is_other = name in OF_OTHERS or (name.startswith("NUMBA_") and name not in OF_NUMBA)
        if is_other and (value := environment.pop(name)):
            said.append(f"{name}={value} is not taken, since results may depend on it; unset it")
    if "glibc.cpu" in environment.get("GLIBC_TUNABLES", ""):
        said.append("GLIBC_TUNABLES chooses other mathematical functions: results may differ; unset it")
    said += [
        f"{place} {lacks}: MPI may not start"
        for place, lacks, is_there in (
            ("/dev/shm", "cannot be written to", os.access("/dev/shm", os.W_OK | os.X_OK)),
            ("/proc", "is not there", os.path.exists("/proc/self")),
        )
        if not is_there
    ]
    threads = environment.get("NUMBA_NUM_THREADS", "1")
    if not (threads.isdecimal() and int(threads)):
        del environment["NUMBA_NUM_THREADS"]
        said.append(f"NUMBA_NUM_THREADS={threads} is not taken: it is no number of threads")
    if any(option.startswith("error") for option in sys.warnoptions):
        _let_warnings_be()
        environment.pop("PYTHONWARNINGS", None)
        said.append("PYTHONWARNINGS is not taken: it makes errors of the warnings of libraries")
    return said


def _let_warnings_be() -> None:
    """Set what becomes of warnings to what Python does by itself."""
    import warnings

    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)


def open_standard_streams() -> None:
    """See to it that 0, 1 and 2 are open, and that any text can be printed.

    Where one is closed, the next file that is opened would get its number, and what libraries print would go
    into a result.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def _speaks() -> bool:
    """Say whether this is the rank that speaks for all."""
    try:
        return launched_rank() == 0
    except ValueError:
        return True
