"""What somebody else may have written is not run: owners, permissions, links, and folders above."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpiimg.kernels.disk import trust

STRANGER = 54321

as_root = pytest.mark.skipif(os.getuid() != 0, reason="ROOT ONLY: giving a file away takes root")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder in one that is ours alone, as pytest makes them."""
    made = tmp_path / "kernels"
    made.mkdir(mode=0o700)
    return made


def test_a_folder_of_ones_own_is_trusted(folder):
    for mode in (0o700, 0o755, 0o500):
        folder.chmod(mode)
        assert trust.trusted(folder)
    assert trust.trusted(folder / "not" / "there")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o1777])
def test_a_folder_that_others_may_write_to_is_not(folder, mode):
    """Sticky or not: others may add to it."""
    folder.chmod(mode)
    assert trust.distrust(folder) == f"others may write to {folder}"
    inside = folder / "ours"
    inside.mkdir(mode=0o700)
    assert trust.distrust(inside, base=folder) == f"others may write to {folder}"


@as_root
def test_a_folder_of_somebody_else_is_not(folder):
    os.chown(folder, STRANGER, -1)
    assert trust.distrust(folder) == f"{folder} belongs to user {STRANGER}"
    inside = folder / "ours"
    inside.mkdir(mode=0o700)
    # Its owner could put another folder in the place of ours.
    assert trust.distrust(inside) == f"{folder} belongs to user {STRANGER}"


@as_root
def test_the_owner_of_the_package_is_trusted(folder, monkeypatch):
    """Whose code runs already; but for the number that a container gives to everybody it does not know."""
    package = folder / "package"
    package.mkdir()
    monkeypatch.setattr(trust, "PACKAGE", package)
    for owner, wrong in ((STRANGER, ""), (65534, "belongs to user 65534")):
        trust._owner_of.cache_clear()
        for path in (folder, package):
            os.chown(path, owner, -1)
        assert trust.distrust(folder, above=False).endswith(wrong)
        assert bool(trust.distrust(folder, above=False)) == bool(wrong)
    trust._owner_of.cache_clear()


def test_a_link_is_not_whatever_it_leads_to(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert trust.distrust(link) == f"{link} is a link"
    assert trust.distrust(link / "inside", base=link) == f"{link} is a link"
    # A user's own link to another disk, above what is for kernels alone, leads there.
    assert trust.trusted(link / "inside")


def test_a_folder_above_that_everybody_may_write_to_has_to_be_sticky(folder):
    inside = folder / "kernels"
    inside.mkdir(mode=0o700)
    folder.chmod(0o777)
    assert trust.distrust(inside) == f"others may write to {folder}"
    assert trust.trusted(inside.parent / "missing") is False
    folder.chmod(0o1777)
    assert trust.trusted(inside)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_a_folder_is_made_for_its_owner_alone(folder, umask):
    before = os.umask(umask)
    try:
        trust.make_folder(folder / "cache" / "kernels" / "cpu", folder / "cache" / "kernels", 0o700)
    finally:
        os.umask(before)
    for name in ("cache/kernels", "cache/kernels/cpu"):
        assert (folder / name).stat().st_mode & 0o777 == 0o700
    assert trust.trusted(folder / "cache/kernels/cpu") == (umask != 0)


@pytest.fixture
def file(folder) -> Path:
    path = folder / "file"
    path.write_bytes(b"content")
    path.chmod(0o644)
    return path


def test_a_file_of_ones_own_is_read(file):
    assert trust.read_file(file) == b"content"
    file.chmod(0o664)
    assert trust.read_file(file, by_group=True) == b"content"


@pytest.mark.parametrize(("mode", "by_group"), [(0o664, False), (0o666, True), (0o646, True)])
def test_a_file_that_others_may_write_to_is_not(file, mode, by_group):
    file.chmod(mode)
    with pytest.raises(PermissionError, match="others may write"):
        trust.read_file(file, by_group)


@as_root
def test_a_file_of_somebody_else_is_not(file):
    os.chown(file, STRANGER, -1)
    with pytest.raises(PermissionError, match=f"belongs to user {STRANGER}"):
        trust.read_file(file)


def test_a_link_is_not_followed_and_a_pipe_not_waited_for(folder, file):
    (folder / "link").symlink_to(file)
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    for name in ("link", "pipe", "sub"):
        with pytest.raises(OSError):
            trust.read_file(folder / name)
