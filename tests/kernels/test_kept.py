"""A kept kernel that is damaged, or that somebody else may have written, is compiled anew and replaced."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys

import numba.core.config
import pytest

from mpiimg.kernels import cache
from mpiimg.kernels.disk import kept

SOURCE = """
from mpiimg.kernels.jit import kernel

@kernel
def tripled(x):
    return 3 * x
"""


def prepared(folder, monkeypatch):
    """Keep kernels below a folder of our own; return that."""
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(folder / "kept"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    (folder / "src").mkdir()
    (folder / "src" / "module.py").write_text(SOURCE)
    # A place that can be written to beside the source would be taken for the one in question.
    (folder / "src" / "__pycache__").write_text("")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A place in which nothing is kept yet."""
    return prepared(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def of_all(tmp_path_factory):
    """A place in which the kernel is kept, with its file and what is in that."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = prepared(tmp_path_factory.mktemp("kept"), monkeypatch)
        call(place)
        (file,) = files(place)
        yield place, file, file.read_bytes()


@pytest.fixture
def compiled(of_all, monkeypatch):
    """The same, as it was at first."""
    place, file, whole = of_all
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(place / "kept"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "home"))
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    file.unlink(missing_ok=True)
    file.write_bytes(whole)
    return place, file, whole


def call(place):
    """Load the module as a new process would; return what its kernel says, and whether it was compiled."""
    spec = importlib.util.spec_from_file_location("module", place / "src" / "module.py")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module.tripled(7), sum(module.tripled.stats.cache_misses.values())


def files(place) -> list:
    return [path for path in (place / "kept").rglob("*") if not path.is_dir() or path.is_symlink()]


def flipped(data: bytes, place: float) -> bytes:
    number = int(place * (len(data) - 1))
    return data[:number] + bytes([data[number] ^ 1]) + data[number + 1 :]


#: What may become of a file; the last is of another version of us, with a checksum that fits.
DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "junk": lambda data: os.urandom(4096),
    "zeros": lambda data: bytes(len(data)),
    "a pickle": lambda data: pickle.dumps("0.60.0") + pickle.dumps(("stamp", {})),
    "a bit of the form": lambda data: flipped(data, 0),
    "a bit of the checksum": lambda data: flipped(data, 0.004),
    "a bit of the code": lambda data: flipped(data, 0.5),
    "the last bit": lambda data: flipped(data, 1),
    "another version": lambda data: data.replace(b"kernel 1", b"kernel 0", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_anew_and_replaced(compiled, damage):
    place, file, whole = compiled
    assert call(place) == (21, 0)
    file.write_bytes(DAMAGES[damage](whole))
    assert call(place) == (21, 1)
    assert kept.is_whole(file)


@pytest.mark.parametrize(
    "content",
    [
        b"cno_such_module\nno_such_name\n.",
        b"\x80\x05}.",
        pickle.dumps(None),
        pickle.dumps(((), "too", "many")),
        pickle.dumps(((), ())),
        b"",
    ],
)
def test_what_cannot_be_unpickled_though_it_is_whole_is_compiled_anew(compiled, content):
    """As after another version of a library."""
    place, file, _ = compiled
    kept.write(file, content, 0o644)
    assert call(place) == (21, 1)
    assert call(place) == (21, 0)


def test_every_bit_counts(tmp_path):
    file = tmp_path / "one.nbc"
    kept.write(file, b"content", 0o644)
    whole = file.read_bytes()
    assert kept.read(file) == b"content"
    for number in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[number // 8] ^= 1 << number % 8
        file.write_bytes(damaged)
        assert not kept.is_whole(file)


class Planted:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def plant(place):
    """Put code into all that is kept, with its checksum."""
    for file in files(place):
        kept.write(file, pickle.dumps(Planted(place / "trace")), 0o644)


@pytest.mark.skipif(os.getuid() != 0, reason="ROOT ONLY: giving a file away takes root")
@pytest.mark.parametrize("which", ["folder", "file", "folder and file"])
def test_code_that_somebody_else_planted_is_not_run(place, which):
    call(place)
    plant(place)
    for path in ([place / "kept"] if "folder" in which else []) + (files(place) if "file" in which else []):
        os.chown(path, 54321, -1)
    assert call(place) == (21, 1)
    assert not (place / "trace").exists()


@pytest.mark.parametrize("which", ["kept", "file"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_nor_what_others_could_have_written(place, which, mode):
    call(place)
    plant(place)
    (place / "kept" if which == "kept" else files(place)[0]).chmod(mode)
    assert call(place) == (21, 1)
    assert not (place / "trace").exists()


def test_nor_what_a_link_leads_to(place):
    call(place)
    plant(place)
    (place / "kept").rename(place / "elsewhere")
    (place / "kept").symlink_to(place / "elsewhere")
    assert call(place) == (21, 1)
    assert not (place / "trace").exists()
    assert len(files(place)) == 1


def test_code_that_is_planted_would_be_run(place):
    """The tests above see it: in a folder and a file of one's own it runs."""
    call(place)
    plant(place)
    assert call(place) == (21, 1)
    assert (place / "trace").exists()


def test_what_is_not_trusted_stays_as_it_is_and_another_place_is_taken(place):
    (place / "kept").mkdir(mode=0o777)
    (place / "kept").chmod(0o777)
    (place / "kept" / "theirs").write_text("theirs")
    assert [call(place), call(place)] == [(21, 1), (21, 0)]
    assert [path.name for path in (place / "kept").iterdir()] == ["theirs"]
    sources = cache._sources(place / "src", "beside")
    assert sources.problems() == [f"others may write to {place / 'kept'}"]
    assert sources.folder().is_relative_to(place / "home" / "mpiimg" / "kernels")


@pytest.mark.parametrize("thing", ["folder", "pipe", "link to nowhere"])
def test_what_is_no_file_is_compiled_anew(compiled, thing):
    place, file, _ = compiled
    file.unlink()
    if thing == "folder":
        file.mkdir()
    elif thing == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(place / "nowhere")
    assert call(place) == (21, 1)


def test_a_full_disk_ends_nothing(place, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(kept.os, "replace", write)
        assert [call(place), call(place)] == [(21, 1), (21, 1)]
        assert files(place) == []
    assert [call(place), call(place)] == [(21, 1), (21, 0)]


def test_what_an_install_compiled_serves_users_who_cannot_write_there(place, monkeypatch):
    """Without a copy: it is read where it is, and only what it lacks goes elsewhere."""
    call(place)
    can_write = cache.can_write
    elsewhere = lambda path: can_write(path) and not path.is_relative_to(place / "kept")  # noqa: E731
    monkeypatch.setattr(cache, "can_write", elsewhere)
    assert call(place) == (21, 0)
    (place / "src" / "module.py").write_text(SOURCE + "\n")
    cache._sources.cache_clear()
    assert [call(place), call(place)] == [(21, 1), (21, 0)]
    assert list((place / "home").rglob("*.nbc"))


def test_files_of_all_can_be_read_by_all_and_written_by_one(place):
    before = os.umask(0o002)
    try:
        call(place)
    finally:
        os.umask(before)
    (file,) = files(place)
    assert file.stat().st_mode & 0o777 == 0o644
    assert call(place) == (21, 0)


def test_two_kernels_of_one_name_do_not_take_each_other_for_themselves(place):
    """numba's own index gave one the code of the other where two processes wrote at once."""
    (place / "src" / "module.py").write_text(SOURCE + SOURCE.replace("3 *", "5 *"))
    assert call(place) == (35, 1)
    (place / "src" / "module.py").write_text(SOURCE)
    cache._sources.cache_clear()
    cache._stamp.cache_clear()
    assert call(place) == (21, 1)
