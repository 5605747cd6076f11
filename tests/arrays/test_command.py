"""Programs of others, called on NumPy blocks and on records, as the ranks of a run call them."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mpiimg.arrays.command import command
from mpiimg.arrays.program_call import ProgramCall, ProgramError
from mpiimg.arrays.template import Template
from mpiimg.engine.mpi import children
from mpiimg.engine.mpi.processes import process_stat
from mpiimg.errors import BadInput
from mpiimg.formats.block_files import load_file, save_block

AXES = ("x", "y", "z")


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The scratch folder of this process lies in a folder of the test, and is empty after each."""
    base = tmp_path / "scratch"
    base.mkdir()
    monkeypatch.setenv("TMPDIR", str(base))
    monkeypatch.setattr(children, "_scratch", None)
    yield base
    left = [path for path in base.rglob("*") if path.parent != base]
    assert left == []


def program(tmp_path, body, name="tool"):
    """Make a program of some lines of Python, which finds NumPy and its words in `words`."""
    path = tmp_path / name
    head = f"#!{sys.executable}\nimport os, sys, time\nimport numpy as np\nwords = sys.argv[1:]\n"
    path.write_text(head + textwrap.dedent(body))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def on_blocks(line, axes=(AXES,), out=(AXES,), **options):
    """The call that command() makes of a template and arrays with these axes, each one output."""
    made = command(line, **options)
    return ProgramCall(**{**vars(made), "axes": axes, "out": out})


def test_a_block_goes_through_files_and_back(tmp_path):
    tool = program(tmp_path, "np.save(words[1], np.load(words[0]) * 2)")
    block = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    doubled = on_blocks(f"{tool} {{in:.npy}} {{out:.npy}}")(block)
    assert doubled.dtype == np.float32
    assert np.array_equal(doubled, block * 2)


def test_several_inputs_and_outputs_come_in_their_order(tmp_path):
    tool = program(
        tmp_path, "a, b = map(np.load, words[:2]); np.save(words[2], a - b[..., None]); np.save(words[3], b)"
    )
    call = on_blocks(
        [tool, "{in0}", "{in1}", "{out1}", "{out0}"],
        axes=(("a", "b", "c"), ("a", "b")),
        out=(("a", "b"), ("a", "b", "c")),
    )
    a, b = np.arange(24.0).reshape(2, 3, 4), np.arange(6.0).reshape(2, 3)
    first, second = call(a, b)
    assert np.array_equal(first, b)
    assert np.array_equal(second, a - b[..., None])


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c8", "?"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".fits", ".npy"])
def test_types_go_to_files_and_back(tmp_path, ending, dtype):
    block = np.arange(12).reshape(3, 4).astype(dtype)
    if ending == ".fits" and dtype == "c8":
        pytest.skip("FITS images hold no complex numbers")
    path = tmp_path / f"block{ending}"
    save_block(path, block, ("y", "x") if ending == ".fits" else ("x", "y"))
    back = load_file(path).values
    assert np.array_equal(back.reshape(block.shape), block)
    assert back.dtype == ("u1" if dtype == "?" and ending != ".npy" else dtype)
    assert back.dtype.isnative


def test_axes_of_a_nifti_are_put_in_order_by_name(tmp_path):
    block = np.arange(24.0).reshape(2, 3, 4)
    path = tmp_path / "block.nii"
    save_block(path, block, ("t", "z", "y"))
    back = load_file(path)
    assert back.values.shape == (1, 4, 3, 2)
    assert np.array_equal(back.values[0], block.transpose(2, 1, 0))


@pytest.mark.parametrize("ending", [".tif", ".h5", ".zarr", ".nii.gz"])
def test_blocks_go_in_any_format_and_come_back_by_the_names_of_axes(ending):
    block = np.arange(120, dtype="f4").reshape(2, 3, 4, 5)
    axes = ("x", "y", "z", "t")
    same = on_blocks(f"cp -r {{in:{ending}}} {{out:{ending}}}", (axes,), (axes,))(block)
    assert np.array_equal(same, block)
    turned = on_blocks(f"cp -r {{in:{ending}}} {{out:{ending}}}", (axes,), (axes[::-1],))(block)
    assert np.array_equal(turned, block.T)


def test_a_command_is_a_function_for_map_blocks_and_map_overlap_too(tmp_path):
    import mpiimg as mi

    values = np.arange(240, dtype="f4").reshape(6, 5, 8)
    with mi.session(tmp_path / "session"):
        volume = mi.from_array(values, "z y x")
        assert np.array_equal(mi.map_blocks(command("cp {in} {out}"), volume).compute(), values)
        call = mi.map_overlap(command("cp {in:.nii} {out:.nii}"), volume, depth={"z": 1}, boundary="reflect")
        assert np.array_equal(call.compute(), values)


def test_an_output_has_the_ending_of_the_file_that_goes_in(tmp_path):
    for name in ("a.nii.gz", "a.fits", "a.txt"):
        path = tmp_path / name
        path.write_text("text") if name == "a.txt" else save_block(path, np.ones((3, 4), "f4"), ("y", "x"))
        made = command("cp {in} {out}")(path)
        assert made == "text" if name == "a.txt" else made.sum() == 12


def test_a_slice_of_a_volume_comes_back_without_the_axis_that_nifti_needs():
    block = np.arange(30, dtype="f4").reshape(3, 2, 5)
    for axes in (("x", "y", "t"), ("t", "y", "x")):
        same = on_blocks("cp {in:.nii} {out:.nii}", (axes,), (axes,))(block)
        assert np.array_equal(same, block)


def test_the_affine_of_a_block_is_in_the_header(tmp_path):
    matrix = np.diag([2.0, 2.0, 3.0, 1.0])
    matrix[:3, 3] = -10, 20, 5
    path = tmp_path / "block.nii"
    save_block(path, np.zeros((2, 3, 4), "f4"), AXES, SimpleNamespace(axes=AXES, matrix=matrix))
    assert np.array_equal(load_file(path).matrix, matrix)


def test_a_wcs_of_a_block_is_in_the_header(tmp_path):
    from astropy.io import fits

    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0})
    path = tmp_path / "block.fits"
    save_block(path, np.zeros((3, 4), "f4"), ("y", "x"), SimpleNamespace(cards=lambda: header))
    written = fits.getheader(path)
    assert (written["CTYPE1"], written["CRVAL1"], written["NAXIS1"]) == ("RA---TAN", 10.0, 4)


def test_voxels_that_a_program_flips_are_flipped_back(tmp_path):
    flip = """
        import nibabel as nib
        image = nib.load(words[0])
        turned = nib.orientations.apply_orientation(image.dataobj, [[1, 1], [0, -1], [2, 1]])
        move = nib.orientations.inv_ornt_aff([[1, 1], [0, -1], [2, 1]], image.shape)
        nib.Nifti1Image(turned, image.affine @ move).to_filename(words[1])
    """
    call = on_blocks(f"{program(tmp_path, flip)} {{in:.nii}} {{out:.nii}}")
    block = np.arange(60, dtype="f4").reshape(3, 4, 5)
    space = SimpleNamespace(axes=AXES, matrix=np.diag([2.0, 2.0, 2.0, 1.0]))
    assert np.array_equal(call(block, block_info={"space": space}), block)


def test_numbers_that_a_program_prints_are_the_result(tmp_path):
    tool = program(tmp_path, "print(np.load(words[0]).mean())")
    assert on_blocks(f"{tool} {{in:.npy}}", out=((),))(np.full((2, 2, 2), 3.0)) == 3.0


def test_axes_of_one_voxel_may_be_dropped_by_a_program(tmp_path):
    tool = program(tmp_path, "np.save(words[1], np.squeeze(np.load(words[0])))")
    assert on_blocks(f"{tool} {{in:.npy}} {{out:.npy}}")(np.zeros((2, 1, 3))).shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit(3)", "ended with exit status 3; it said nothing"),
        ("print('no such tissue', file=sys.stderr); sys.exit(1)", "its last words:\n  no such tissue"),
        ("[print(n, file=sys.stderr) for n in range(99)]; sys.exit(1)", "words:\n  91\n  92\n"),
        ("os.kill(os.getpid(), 11)", r"was ended by signal 11 \(SIGSEGV\)"),
        ("pass", "ended well and wrote no {out}"),
        ("open(words[1], 'wb').write(b'\\x93NUMPY')", r"its {out} \(6 bytes\) cannot be read"),
        ("np.save(words[1], np.zeros((2, 2, 5)))", r"shape \(2, 2, 5\), where \(x 2, y 2, z 2\) is due"),
        ("np.save(words[1], np.zeros(8))", r"shape \(8,\), where"),
    ],
)
def test_a_program_that_fails_is_an_error_that_says_how(tmp_path, body, words):
    call = on_blocks(f"{program(tmp_path, body)} {{in:.npy}} {{out:.npy}}")
    with pytest.raises(ProgramError, match=words) as caught:
        call(np.zeros((2, 2, 2)))
    assert f"{tmp_path}/tool" in str(caught.value)


def test_a_truncated_image_is_an_error(tmp_path):
    cut = "d = open(words[0], 'rb').read(); open(words[1], 'wb').write(d[:-40])"
    for ending in (".nii", ".fits", ".npy"):
        call = on_blocks(f"{program(tmp_path, cut)} {{in:{ending}}} {{out:{ending}}}")
        with pytest.raises(ProgramError, match="cannot be read"):
            call(np.ones((20, 20, 20), "f4"))


def test_statuses_may_be_declared_well(tmp_path):
    tool = program(tmp_path, "np.save(words[1], np.load(words[0])); sys.exit(4)")
    assert on_blocks(f"{tool} {{in:.npy}} {{out:.npy}}", ok=(0, 4))(np.ones((1, 1, 1))).all()


def test_a_time_limit_ends_what_the_program_started_too(tmp_path):
    body = """
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        open(words[0], "w").write(str(child.pid))
        time.sleep(60)
    """
    note = tmp_path / "pid"
    call = on_blocks([program(tmp_path, body), note, "{in:.npy}", "{out:.npy}"], timeout=1)
    began = time.monotonic()
    with pytest.raises(ProgramError, match="took longer than 1 s"):
        call(np.zeros((1, 1, 1)))
    assert time.monotonic() - began < 20
    assert is_gone(int(note.read_text()))


def is_gone(pid):
    return until(lambda: (found := process_stat(pid)) is None or not found.is_alive)


def test_where_the_rank_is_killed_program_and_scratch_go_with_it(tmp_path, scratch):
    tool = program(tmp_path, "open(words[0], 'w').write(str(os.getpid())); time.sleep(60)")
    note = tmp_path / "pid"
    script = (
        "import numpy as np\nfrom mpiimg.arrays.command import command\n"
        f"command([{str(tool)!r}, {str(note)!r}, '{{in}}', '{{out}}'])(np.zeros(3))"
    )
    rank = subprocess.Popen([sys.executable, "-c", script])
    while not (note.exists() and note.read_text()):
        assert rank.poll() is None
        time.sleep(0.05)
    assert len(list(scratch.iterdir())) == 1
    rank.kill()
    rank.wait()
    assert is_gone(int(note.read_text()))
    assert until(lambda: not any(scratch.iterdir()))


def until(condition):
    for _ in range(50):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_a_signal_meanwhile_is_handled_and_the_program_goes_on(tmp_path):
    tool = program(tmp_path, f"os.kill({os.getpid()}, 10); time.sleep(0.3); np.save(words[1], np.ones(1))")
    caught = []
    before = signal.signal(signal.SIGUSR1, lambda *_: caught.append(time.monotonic()))
    try:
        result = on_blocks(f"{tool} {{in:.npy}} {{out:.npy}}", (("x",),), (("x",),))(np.zeros(1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert result == 1
    assert caught and time.monotonic() - caught[0] > 0.2


def test_a_program_is_no_rank_and_works_in_one_thread(tmp_path, monkeypatch):
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PMIX_RANK"):
        monkeypatch.setenv(name, "1")
    tool = program(tmp_path, "print(*sorted(f'{k}={v}' for k, v in os.environ.items()))")
    said = command(f"{tool} {{in}}", env={"MINE": "x", "HOME": None})("path").split()
    assert not [word for word in said if word.startswith(("PMI", "OMPI_", "SLURM_", "HOME="))]
    assert {"OMP_NUM_THREADS=1", "MRTRIX_NTHREADS=0", "MINE=x"} <= set(said)
    assert "OMP_NUM_THREADS=4" in command(f"{tool} {{in}}", threads=4)("path").split()


def test_a_full_scratch_disk_is_said_with_what_to_do(tmp_path, monkeypatch):
    from mpiimg.engine.system_errors import answer

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpiimg.arrays.program_call.save_block", full)
    with pytest.raises(OSError) as caught:
        command("cp {in} {out}")(np.zeros(3))
    assert "TMPDIR" in answer(caught.value)
    assert "free some space there" in answer(caught.value)


def test_a_library_that_finds_the_disk_full_in_its_own_words_is_understood(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("Not enough space on disk: requested 1000, available 1")

    monkeypatch.setattr("mpiimg.arrays.program_call.save_block", full)
    with pytest.raises(OSError, match="Not enough space"):
        command("cp {in} {out}")(np.zeros(3))
    monkeypatch.setattr("mpiimg.arrays.program_call.free_bytes", lambda folder: 1)
    with pytest.raises(OSError, match=r"No space left on device.*TMPDIR"):
        command("cp {in} {out}")(np.zeros(3))


def test_a_scratch_folder_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(BadInput, match="/nowhere: cannot hold the scratch files of programs: No such file"):
        command("cp {in} {out}")(np.zeros(3))


def test_records_of_items(tmp_path):
    tool = program(tmp_path, "print(*[open(w).read() if os.path.exists(w) else w for w in words])")
    path = tmp_path / "one.txt"
    path.write_text("hello")
    assert command(f"{tool} {{in}}")(path) == "hello\n"
    assert command(f"{tool} {{in}}")(str(path)) == "hello\n"
    assert command(f"{tool} {{in1}} {{in0}}")((path, 5)) == "5 hello\n"
    assert command(f"{tool} {{image}} -s {{sigma}}")({"image": path, "sigma": 2.5}) == "hello -s 2.5\n"
    copied = command("cp {image:.npy} {out:.npy}")({"image": np.arange(3)})
    assert copied.tolist() == [0, 1, 2]
    with pytest.raises(BadInput, match=r"has no .image.; it has: sigma"):
        command(f"{tool} {{image}}")({"sigma": 2})
    with pytest.raises(BadInput, match="has 1 inputs, and was called with 2"):
        command(f"{tool} {{in}}")((path, path))


def test_a_program_may_work_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("hello")
    tool = program(tmp_path, "print(os.getcwd(), open(words[0]).read()); open('dropping', 'w')")
    where, said = command(f"{tool} {{in}}", cwd="{scratch}")("one.txt").split()
    assert "/mpiimg-" in where and said == "hello"
    assert command(f"{tool} {{in}}")("one.txt").split() == [str(tmp_path), "hello"]


def test_tables_and_text_that_programs_write(tmp_path):
    tool = program(
        tmp_path,
        """
        from astropy.table import Table
        table = Table({"x": [1.5, 2.5], "name": ["a", "bc"]})
        table.write(words[1]) if words[1].endswith("fits") else table.write(words[1], format="ascii.csv")
        """,
    )
    for ending in ("fits", "csv"):
        rows = command(f"{tool} {{in}} {{out:.{ending}}}")("a")
        assert rows["x"].tolist() == [1.5, 2.5]
        assert [str(name) for name in rows["name"]] == ["a", "bc"]
        assert rows["x"].dtype.isnative
    loaded = command("cp {in} {out:.par}", load=lambda path: path.stat().st_size)(tool)
    assert loaded == tool.stat().st_size


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no-such-program {in} {out}", "no-such-program: is not on PATH"),
        ("dwi2tensor2 {in}", "dwi2tensor2: is not on PATH"),
        ("/nowhere/tool {in}", "there is no such program"),
        ("cat {in} | sort > {out}", "no shell reads this"),
        ("cat '{in}", "No closing quotation"),
        ("", "empty"),
        ("{in} {out}", "cannot be a placeholder"),
        (5, "got int"),
    ],
)
def test_what_cannot_be_run_is_said_before(line, words):
    with pytest.raises(BadInput, match=words):
        command(line)


def test_a_missing_program_of_a_known_package_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInput, match="dwidenoise: is not on PATH; Debian has it in mrtrix3"):
        command("dwidenoise {in} {out}")


def test_what_does_not_fit_the_arrays_is_said_before():
    array = SimpleNamespace(axes=AXES)
    with pytest.raises(BadInput, match=r"must have .in0. .in1."):
        command("cp {in} {out}", array, array)
    with pytest.raises(BadInput, match=r".input. stands for nothing"):
        command("cp {in} {input} {out}", array)
    with pytest.raises(BadInput, match="each is for arrays, and none is given"):
        command("cp {in} {out}", each="t")
    with pytest.raises(BadInput, match="timeout=0"):
        command("cp {in} {out}", timeout=0)


def test_a_call_is_known_by_program_template_and_files_it_names(tmp_path):
    config = tmp_path / "default.conf"
    config.write_text("a")
    lines = {}
    lines["first"] = command(f"cp {{in}} {{out}} -c {config}").__dask_tokenize__()
    assert lines["first"] == command(f"cp {{in}} {{out}} -c {config}", timeout=3).__dask_tokenize__()
    config.write_text("bb")
    lines["config"] = command(f"cp {{in}} {{out}} -c {config}").__dask_tokenize__()
    lines["program"] = command(f"mv {{in}} {{out}} -c {config}").__dask_tokenize__()
    lines["environment"] = command(f"cp {{in}} {{out}} -c {config}", env={"A": "1"}).__dask_tokenize__()
    assert len(set(map(repr, lines.values()))) == 4


def test_braces_that_are_no_placeholders_stay():
    line = Template.of("awk '{ print $1 }' {in:.txt}")
    assert line.filled({("in", 0): "f"}) == ["awk", "{ print $1 }", "f"]


@pytest.mark.skipif(shutil.which("dwidenoise") is None, reason="NOT RUN: MRtrix3 is not installed")
def test_mrtrix_denoises_a_block_as_on_a_file_of_its_own(tmp_path):
    import nibabel

    block = np.random.default_rng(1).normal(100, 5, (8, 8, 6, 20)).astype("f4")
    axes = (*AXES, "t")
    matrix = np.diag([-2.0, 2.0, 2.0, 1.0])
    call = on_blocks("dwidenoise {in:.nii} {out:.nii} -extent 3 -quiet", (axes,), (axes,))
    clean = call(block, block_info={"space": SimpleNamespace(axes=axes[:3], matrix=matrix)})
    nibabel.Nifti1Image(block, matrix).to_filename(tmp_path / "in.nii")
    subprocess.run(["dwidenoise", "in.nii", "out.nii", "-extent", "3", "-quiet"], cwd=tmp_path, check=True)
    assert np.array_equal(clean, nibabel.load(tmp_path / "out.nii").get_fdata(dtype="f4"))


@pytest.mark.skipif(shutil.which("mrconvert") is None, reason="NOT RUN: MRtrix3 is not installed")
def test_what_mrtrix_writes_in_its_own_format_is_read_as_it_was():
    block = np.arange(60, dtype="f4").reshape(3, 4, 5)
    space = SimpleNamespace(axes=AXES, matrix=np.diag([-2.0, 2.0, 2.0, 1.0]))
    for strides in ("1,2,3", "-1,3,2"):
        call = on_blocks(f"mrconvert -quiet -strides {strides} {{in:.nii}} {{out:.mif}}")
        assert np.array_equal(call(block, block_info={"space": space}), block)


@pytest.mark.skipif(shutil.which("source-extractor") is None, reason="NOT RUN: no source-extractor here")
def test_source_extractor_finds_the_stars_of_an_image(tmp_path):
    y, x = np.mgrid[:64, :64]
    image = np.random.default_rng(2).normal(0, 1, (64, 64)).astype("f4")
    for y0, x0 in ((20, 30), (50, 10)):
        image += 200 * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 8)
    parameters = tmp_path / "columns.param"
    parameters.write_text("X_IMAGE\nY_IMAGE\nFLUX_AUTO\n")
    line = (
        "source-extractor {in:.fits} -c /dev/null -CATALOG_NAME {out:.cat} -CATALOG_TYPE FITS_1.0 "
        f"-PARAMETERS_NAME {parameters} -FILTER N -DETECT_THRESH 5"
    )
    rows = command(line)(image.astype("f4"))
    assert sorted(np.rint(rows["X_IMAGE"]).tolist()) == [11, 31]
