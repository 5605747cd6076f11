"""TIFF of every make, read in boxes and compared with tifffile's own reading; and what is written by us."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.peers import numbers, read_in_boxes, write_alone

from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.interface import ResultArray
from mpiimg.formats.space import Affine
from mpiimg.formats.tiff import writing

STACK = numbers("uint16", (3, 2, 4, 25, 37))

#: Voxels that lie askew.
SPACE = Affine(
    ("x", "y", "z"),
    [[0, -2, 0, 5], [2, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]],
    ("mm", "sec"),
    steps=[("t", 1.5, 0)],
)


def saved(path, values, **options):
    tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})
    return path


def check(path, values, axes):
    """A file is read as these values, whole and in random boxes; return the input."""
    read, source = read_in_boxes(path, pieces=3)
    np.testing.assert_array_equal(read, values)
    assert source.axes == tuple(axes.split())
    reader, rng = source.open(), np.random.default_rng(0)
    for _ in range(10):
        box = tuple(tuple(sorted(rng.integers(0, n + 1, 2).tolist())) for n in values.shape)
        np.testing.assert_array_equal(reader.read(box), values[tuple(slice(*bounds) for bounds in box)])
    reader.close()
    return source


# --- Read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 32)], ids=["strips", "tiles"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits", "jpeg"])
def test_packed_colours_are_read_by_strips_and_tiles(compression, tile, planes, tmp_path):
    values = numbers("uint8", (3, 25, 37, 3) if planes == "contig" else (3, 3, 25, 37))
    cut = {"tile": tile} if tile else {"rowsperstrip": 7}
    about = {"photometric": "rgb", "planarconfig": planes, "compression": compression}
    path = saved(tmp_path / "x.tif", values, **about, **cut)
    source = check(path, tifffile.imread(path), "q y x s" if planes == "contig" else "q s y x")
    if compression not in (None, "jpeg"):
        cut = tile or (7, 37)
        assert source.chunks == ((1, *cut, 3) if planes == "contig" else (1, 1, *cut))


def test_a_box_reads_only_the_strips_that_it_meets(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.tif", STACK[0, 0], rowsperstrip=5, compression="zlib")
    reader = registry.read(path, "x").open()
    met, fetch = [], reader._bytes
    monkeypatch.setattr(reader, "_bytes", lambda *where: met.append(where) or fetch(*where))
    reader.read(((1, 3), (6, 9), (0, 2)))
    assert len(met) == 2
    reader.read(((1, 3), (9, 11), (0, 2)))
    assert len(met) == 2 + 4


@pytest.mark.parametrize(
    "options",
    [
        {"bigtiff": True, "byteorder": ">"},
        {"compression": "zlib", "predictor": True, "byteorder": ">"},
        {"tile": (2, 16, 16), "volumetric": True, "compression": "zlib"},
        {"tile": (16, 16)},
    ],
    ids=["big, of the other byte order", "predictor", "bricks", "plain tiles"],
)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_layouts(options, dtype, tmp_path):
    values = STACK[0].astype(dtype)
    check(saved(tmp_path / "x.tif", values, metadata={"axes": "TZYX"}, **options), values, "t z y x")


def test_pixels_that_are_no_brightness_are_said_to_be_such(tmp_path):
    values = STACK[0, 0, 0].astype(np.uint8)
    path = saved(tmp_path / "x.tif", values, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    assert check(path, values, "y x").attrs == {"photometric": "palette"}
    path = saved(tmp_path / "y.tif", values, photometric="miniswhite")
    assert check(path, values, "y x").attrs == {"photometric": "miniswhite"}


def test_bits_and_pages_by_pillow(tmp_path):
    check(saved(tmp_path / "bits.tif", STACK[0, 0, 0] > 30000), STACK[0, 0, 0] > 30000, "y x")
    pages = [Image.fromarray(page) for page in STACK[0, 0]]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    check(tmp_path / "pages.tif", STACK[0, 0], "i y x")


def test_ome_says_axes_sizes_and_steps(tmp_path):
    sizes = {"PhysicalSizeX": 300, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.3, "PhysicalSizeZ": 1.5}
    about = {"axes": "TCZYX", **sizes, "TimeIncrement": 200, "TimeIncrementUnit": "ms", "Name": "cells"}
    path = saved(tmp_path / "x.ome.tif", STACK, metadata={**about, "Channel": {"Name": ["red", "green"]}})
    source = check(path, STACK, "t c z y x")
    np.testing.assert_allclose(source.space.matrix, np.diag([0.3, 0.3, 1.5, 1]))
    assert (source.space.units, source.space.steps) == (("micron", "sec"), (("t", 0.2, 0.0),))
    assert source.attrs == {"name": "cells", "channels": ["red", "green"]}


def test_imagej_says_axes_and_sizes(tmp_path):
    about = {"axes": "TZCYX", "spacing": 3.5, "unit": "um", "finterval": 0.5}
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, STACK, imagej=True, resolution=(2, 4), metadata=about)
    source = check(path, STACK, "t z c y x")
    np.testing.assert_allclose(source.space.matrix, np.diag([0.5, 0.25, 3.5, 1]))
    assert (source.space.units, source.space.steps) == (("micron", "sec"), (("t", 0.5, 0.0),))


def test_levels_of_a_pyramid_and_images_of_several(tmp_path):
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        about = {"tile": (16, 16), "photometric": "minisblack"}
        writer.write(STACK[0], subifds=1, metadata={"axes": "CZYX", "PhysicalSizeX": 0.5}, **about)
        writer.write(STACK[0, :, :, ::2, ::2], subfiletype=1, **about)
        writer.write(STACK[1, 0, 0], **about)
    assert check(f"{path}:0", STACK[0], "c z y x").space.matrix[0][0] == 0.5
    half = check(f"{path}:0/1", STACK[0, :, :, ::2, ::2], "c z y x")
    assert half.space.matrix[0][0] == pytest.approx(0.5 * 37 / 19)
    check(f"{path}:1", STACK[1, 0, 0], "y x")
    for name, said in [
        (path, r"holds 2 images; name one of them: :0 \(c z y x: 2 x 4 x 25 x 37, uint16\); :1"),
        (f"{path}:2", "holds no image 2; there are :0 "),
        (f"{path}:0/2", "has no level 2; there are 2, from 0: "),
    ]:
        with pytest.raises(BadInput, match=said):
            registry.read(name, "x")


def test_an_ome_tiff_of_several_files(tmp_path):
    """The files that its OME-XML names; a plane that is nowhere is said, and taken as 0."""
    values = STACK[0, 0]
    for number in range(2):
        pages = values[2 * number : 2 * number + 2]
        uuid = [f"urn:uuid:0000000{k}-0000-0000-0000-000000000000" for k in range(2)]
        data = "".join(
            f'<TiffData IFD="{z % 2}" FirstZ="{z}" FirstC="0" FirstT="0" PlaneCount="1">'
            f'<UUID FileName="{z // 2}.ome.tif">{uuid[z // 2]}</UUID></TiffData>'
            for z in range(4)
        )
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid[number]}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="37" '
            f'SizeY="25" SizeZ="4" SizeC="1" SizeT="1">{data}</Pixels></Image></OME>'
        )
        saved(tmp_path / f"{number}.ome.tif", pages, description=xml, metadata=None, compression="zlib")
    source = check(tmp_path / "0.ome.tif", values, "z y x")
    assert [path.name for path in source.files] == ["0.ome.tif", "1.ome.tif"]
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(BadInput, match="truncated or damaged"):
        registry.read(tmp_path / "0.ome.tif", "x")


@pytest.mark.parametrize("keep", [20, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"bigtiff": True, "tile": (16, 16)}])
def test_a_file_cut_anywhere_is_refused(keep, options, tmp_path):
    """Not read as an image of fewer pages, as its own library does."""
    path = saved(tmp_path / "x.tif", STACK[0, 0], **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(BadInput) as refused:
        registry.read(path, "x")
    assert "\n" not in str(refused.value)


def test_a_damaged_strip_is_said_when_it_is_read(tmp_path):
    path = saved(tmp_path / "x.tif", STACK[0, 0], compression="zlib", rowsperstrip=5)
    with tifffile.TiffFile(path) as file:
        place = file.pages[2].dataoffsets[1]
    data = bytearray(path.read_bytes())
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    reader = registry.read(path, "x").open()
    reader.read(((0, 2), (0, 25), (0, 37)))
    with pytest.raises(BadInput, match="strip or tile 1 of page 2 cannot be decoded"):
        reader.read(((2, 3), (0, 25), (0, 37)))


def test_a_compression_that_nobody_knows_is_refused_before_any_is_read(tmp_path):
    path = saved(tmp_path / "x.tif", STACK[0, 0, 0], compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(34999)
    with pytest.raises(BadInput, match=r"compression.* cannot be read here.*'mpiimg\[tiff\]'"):
        registry.read(path, "x")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.tif", STACK[0, 0, 0])
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(BadInput, match=r"x\.tif: needs the package tifffile: pip install 'mpiimg\[tiff\]'"):
        registry.read(path, "x")


# --- Written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "shape", "kept"),
    [
        ("x y z t", (37, 25, 4, 3), "t z y x"),
        ("t c z y x", (3, 2, 4, 25, 37), "t c z y x"),
        ("z t y x", (1, 3, 25, 37), "t z y x"),
        ("y x s", (25, 37, 3), "y x s"),
        ("s y x", (5, 25, 37), "y x s"),
        ("y x", (1, 9), "y x"),
    ],
)
@pytest.mark.parametrize("ending", [".tif", ".ome.tif"])
def test_axes_space_and_attributes_come_back(axes, shape, kept, ending, tmp_path):
    values, axes, kept = numbers("uint8", shape), tuple(axes.split()), tuple(kept.split())
    if ending == ".tif" and axes[-2:] == ("y", "x") and axes[0] != "s":
        kept = axes
    ordered = values.transpose([axes.index(axis) for axis in kept])
    about = {"space": SPACE, "attrs": {"note": ["µ", 1.5, None, float("nan")]}}
    path = write_alone(tmp_path, f"x{ending}", values, axes, **about)
    read, source = read_in_boxes(path)
    np.testing.assert_array_equal(read, ordered)
    assert (source.axes, source.space) == (kept, SPACE)
    assert source.attrs["note"] == ["µ", 1.5, None, "nan"]
    np.testing.assert_array_equal(tifffile.imread(path).reshape(ordered.shape), ordered)
    with tifffile.TiffFile(path) as file:
        assert (file.is_ome, len(file.series)) == (ending == ".ome.tif", 1)
    if len(kept) == 2 or axes == ("y", "x", "s"):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), ordered)


def test_ome_has_the_sizes_of_pixels(tmp_path):
    path = write_alone(tmp_path, "x.ome.tif", numbers("int16", (4, 25, 37)), ("z", "y", "x"), space=SPACE)
    with tifffile.TiffFile(path) as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{axis}"] for axis in "XYZ"] == [2, 2, 3]
    assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "XYZ"} == {"mm"}


@pytest.mark.parametrize("ome", [False, True])
def test_the_same_array_gives_the_same_bytes(ome):
    made = [
        writing.TiffWriter(ResultArray("x.tif", ("t", "z", "y", "x"), (3, 4, 5, 6), "float32", SPACE), ome)
        for _ in "ab"
    ]
    assert made[0].head() == made[1].head() and made[0].tail() == made[1].tail()


def test_from_four_gigabytes_on_it_is_a_big_tiff():
    def start(rows):
        return writing.TiffWriter(ResultArray("x.tif", ("z", "y", "x"), (2, rows, 1 << 15), "uint16")).head()[
            :4
        ]

    assert start(1 << 10) == b"II*\0"
    assert start(1 << 15) == b"II+\0"


@pytest.mark.parametrize(
    ("name", "axes", "dtype", "said"),
    [
        (
            "x.ome.tif",
            ("g", "y", "x"),
            "uint8",
            "has the axes t c z y x s, with y and x, and the array has g y x",
        ),
        ("x.ome.tif", ("z", "x"), "uint8", "has the axes t c z y x s"),
        ("x.ome.tif", ("y", "x"), "int64", "an OME-TIFF has no values of type int64"),
    ],
)
def test_what_cannot_be_written_is_refused(name, axes, dtype, said):
    with pytest.raises(BadInput, match=said):
        registry.writer(name)(ResultArray(name, axes, (4,) * len(axes), dtype))
