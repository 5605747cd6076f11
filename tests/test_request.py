"""What changed since the last run, in one line that can be read."""

from mpiimg.pipeline.request import changes


def asked(**given):
    return {
        "tool": "mpiimg-astro",
        "mpiimg": "1",
        "CPU": "x",
        "libraries": {},
        "parameters": {},
        "inputs": {},
    } | given


def test_values_are_shown_and_lists_are_counted():
    before = asked(parameters={"exposures": ["a.fits"] * 900, "sigma": 3.0}, inputs={"a": [1], "b": [2]})
    now = asked(parameters={"exposures": ["a.fits"] * 901, "sigma": 4.0}, inputs={"a": [9], "c": [2]})
    said = changes(before, now)
    assert said.startswith("--exposures, of which there are 901, --sigma 4.0 (was 3.0), ")
    assert said.endswith("input a was changed, 2 more")
    assert changes(before, before) == ""
