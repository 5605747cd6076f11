"""What installed packages bring: domains, steps and formats by entry points, and what is said of them."""

from __future__ import annotations

import sys

import pytest
from support import toydomain

from mpiimg.engine import plugins
from mpiimg.errors import BadInput

CACHED = (plugins.installed, plugins._entries, plugins.packages)

PROGRAM = """
import dataclasses
from support import toydomain

DOMAIN = dataclasses.replace(toydomain.DOMAIN, name="frames", steps={"scale": "support.toydomain:SCALE"})
TURN = dataclasses.replace(toydomain.SCALE, name="turn", kernels=("toyplugin:compile",))
"""


def forget():
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return a function that installs a package with entry points into a folder of its own."""

    def install(name, module, entry_points, code=PROGRAM, requires=(), version="1.2"):
        (tmp_path / f"{module}.py").write_text(code)
        about = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
        (about / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
        (about / "entry_points.txt").write_text(entry_points)
        forget()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield install
    forget()
    for module in [name for name in sys.modules if name.startswith("toyplugin")]:
        del sys.modules[module]


BRINGS = """
[mpiimg.domains]
frames = toyplugin:DOMAIN

[mpiimg.steps]
frames.turn = toyplugin:TURN
neuro.turn = toyplugin:TURN
"""


def test_what_is_built_in_asks_no_entry_points(monkeypatch):
    def asked(group):
        raise AssertionError(f"entry points of {group} were asked for")

    monkeypatch.setattr(plugins, "installed", asked)
    assert plugins.domain_place("neuro") == "mpiimg.neuro.pipelines:DOMAIN"
    assert plugins.step_place(toydomain.DOMAIN, "scale") == "support.toydomain:SCALE"
    assert plugins.step(toydomain.DOMAIN, "scale") is toydomain.SCALE


def test_a_package_brings_a_domain_and_steps_to_it_and_to_others(site):
    site("toy-plugin", "toyplugin", BRINGS)
    frames = plugins.domain("frames")
    assert frames.name == "frames"
    assert plugins.domain_place("frames") == "toyplugin:DOMAIN"
    assert plugins.step_names(frames) == ["scale", "turn"]
    assert plugins.step(frames, "turn").kernels == ("toyplugin:compile",)
    assert plugins.step(plugins.domain("neuro"), "turn").name == "turn"
    assert frames in plugins.every_domain()
    assert [domain.name for domain in plugins.every_domain()][:2] == ["neuro", "astro"]


def test_everything_that_is_installed_is_compiled_and_measured(site):
    site("toy-plugin", "toyplugin", BRINGS)
    assert "toyplugin:compile" in plugins.kernels()
    assert len(set(plugins.kernels())) == len(plugins.kernels())
    assert plugins.default_rates()["scale"] == 1e-9
    assert plugins.samples()["scale"] is toydomain.sample


def test_steps_are_listed_without_loading_them(site):
    site("toy-plugin", "toyplugin", BRINGS)
    assert plugins.step_names(plugins.domain("neuro"))[-1] == "turn"
    assert "toyplugin" not in sys.modules


def test_what_is_not_there_is_said_with_what_is(site):
    site("toy-plugin", "toyplugin", BRINGS)
    with pytest.raises(BadInput, match=r"^stars: there is no such domain; there are astro, frames, neuro$"):
        plugins.domain("stars")
    with pytest.raises(BadInput, match=r"^bend: frames has no such step; it has scale, turn$"):
        plugins.step(plugins.domain("frames"), "bend")


def test_a_name_of_ours_is_ours(site):
    site("toy-plugin", "toyplugin", "[mpiimg.domains]\nneuro = toyplugin:DOMAIN\n")
    assert plugins.domain_place("neuro") == "mpiimg.neuro.pipelines:DOMAIN"


def test_two_packages_of_one_name_are_refused(site):
    site("toy-plugin", "toyplugin", BRINGS)
    site("toy-other", "toyplugin_other", "[mpiimg.domains]\nframes = toyplugin_other:DOMAIN\n")
    with pytest.raises(BadInput, match=r"^frames: two installed packages bring this to mpiimg\.domains, "):
        plugins.domain("frames")


@pytest.mark.parametrize("code", ["import nowhere_at_all", "1 / 0", "DOMAIN ="])
def test_a_plugin_that_cannot_be_loaded_is_named(site, code):
    site("toy-plugin", "toyplugin", BRINGS, code)
    with pytest.raises(BadInput, match=r"^toyplugin:DOMAIN: this plugin cannot be loaded: \w+Error: "):
        plugins.domain("frames")


def test_an_error_in_our_own_modules_is_no_bad_input():
    with pytest.raises(AttributeError):
        plugins.load_object("mpiimg.errors:NOWHERE")
    with pytest.raises(ModuleNotFoundError):
        plugins.load_object("mpiimg.nowhere:STEP")


def test_versions_of_a_plugin_and_of_what_it_requires_are_known(site):
    import numpy

    requires = ("numpy>=1.0", "mpiimg", "nowhere-at-all", 'h5py ; extra == "more"')
    site("toy-plugin", "toyplugin", BRINGS, requires=requires)
    assert plugins.packages("toyplugin") == {"toy-plugin": "1.2", "numpy": numpy.__version__}
    assert plugins.packages("toyplugin.steps.turn") == plugins.packages("toyplugin")
    assert plugins.packages("mpiimg.neuro.steps.mask") == {}
    assert plugins.packages("support.toydomain") == {}
