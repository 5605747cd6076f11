"""The composer: order, sources, labels, results and their folders, documents, history, inspections."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from support import toydomain
from support.toydomain import COUNT, DOMAIN, LEVEL, PLAIN, SCALE, STREAMED, WEIGH

from mpiimg.engine import compose
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.compose import Link, RunName
from mpiimg.engine.inputs import Input
from mpiimg.engine.labels import labelled
from mpiimg.engine.needs import Part
from mpiimg.engine.plan import Resources, plan_recipe
from mpiimg.engine.recipe import output_names
from mpiimg.engine.stage import Compute, Reduce, Stream
from mpiimg.engine.step import Output
from mpiimg.errors import BadInput


@pytest.fixture
def paths(tmp_path):
    """A sheet of 5 rows, and weights."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "sheet.npy", rng.normal(size=(5, 3)))
    np.save(tmp_path / "weights.npy", rng.uniform(size=5))
    return {"sheet": tmp_path / "sheet.npy", "weights": tmp_path / "weights.npy"}


def link(step, label="", write=True, **parameters):
    return Link(step, step.parameters(**parameters), label or step.name, write)


def chain(*links, domain=DOMAIN, **settings):
    links = [one if isinstance(one, Link) else link(one) for one in links]
    return compose.make_chain(domain, links, settings)


def recipe_of(made, paths, name=None):
    inspected = compose.inspect_chain(made, paths)
    return compose.make_recipe(made, inspected, name or RunName("mpiimg-toys", "run.json", {"a": 1}))


def names(recipe):
    return [stage.name for stage in recipe.expected]


def opened(*steps):
    source, taken, welcome = compose.open_with(DOMAIN, steps, "here")
    return source, set(taken), set(welcome)


# Order and source.


def test_the_first_source_that_gives_what_is_taken_opens_a_chain():
    assert opened(SCALE) == (PLAIN, {"rows"}, set())
    assert opened(SCALE, LEVEL, COUNT) == (PLAIN, {"rows"}, set())
    needy = dataclasses.replace(SCALE, takes=("rows", "weights"))
    assert opened(needy) == (STREAMED, {"rows", "weights"}, set())
    assert opened(SCALE, needy) == (STREAMED, {"rows", "weights"}, set())


def test_a_source_is_asked_for_what_a_step_uses_where_it_gives_that():
    plain = dataclasses.replace(DOMAIN, sources=(STREAMED,))
    _, taken, welcome = compose.open_with(plain, [LEVEL], "here")
    assert (taken, welcome) == ({"rows"}, {"weights"})
    # PLAIN gives no weights, and LEVEL does without.
    assert opened(LEVEL) == (PLAIN, {"rows"}, set())


def test_what_a_step_gives_may_be_brought_along_instead():
    """If a later step takes it, and the source has an argument that brings it."""
    streamed = dataclasses.replace(DOMAIN, sources=(STREAMED,))
    needy = dataclasses.replace(SCALE, takes=("rows", "weights"))
    for last, welcome in ((needy, {"weights"}), (LEVEL, {"weights"}), (SCALE, set())):
        _, taken, found = compose.open_with(streamed, [WEIGH, last], "here")
        assert (taken, found) == ({"rows"}, welcome)


def test_a_step_that_gets_nothing_is_refused():
    with pytest.raises(BadInput) as refused:
        chain(COUNT)
    assert str(refused.value) == (
        "this pipeline: count cannot stand first: it takes level, which level gives"
    )
    with pytest.raises(BadInput, match=r"^mine: count cannot stand after scale: it takes level, which level"):
        compose.make_chain(DOMAIN, [link(SCALE), link(COUNT)], {}, "mine")
    stray = dataclasses.replace(SCALE, name="stray", takes=("colour",))
    with pytest.raises(BadInput, match="stray cannot stand first: it takes colour, which no step before it"):
        chain(stray)


def test_steps_that_no_one_source_serves_are_refused():
    """Each thing has a source, but not the same."""

    def giving(*gives):
        sources = [dataclasses.replace(PLAIN, gives=one) for one in gives]
        return dataclasses.replace(DOMAIN, sources=tuple(sources))

    other = dataclasses.replace(SCALE, name="other", takes=("weights",), gives=())
    with pytest.raises(BadInput, match="other cannot stand after scale: it takes weights, which weigh gives"):
        chain(SCALE, other, domain=giving(("rows",), ("weights",)))
    other = dataclasses.replace(SCALE, name="other", takes=("level", "weights"), gives=())
    with pytest.raises(BadInput, match="other cannot stand after scale: it takes other data"):
        chain(SCALE, other, domain=giving(("rows", "weights"), ("rows", "level")))


def test_two_links_of_one_label_are_refused():
    with pytest.raises(BadInput, match="two stages are called scale; give one of them another name"):
        chain(SCALE, SCALE)


def test_arguments_are_those_that_the_chain_can_use():
    taken, weights = frozenset({"rows"}), frozenset({"weights"})

    def asked(taken, welcome):
        return [(one.name, must) for one, must in compose.arguments_of(STREAMED, taken, welcome)]

    assert asked(taken, frozenset()) == [("sheet", True)]
    assert asked(taken, weights) == [("sheet", True), ("weights", False)]
    assert asked(taken | weights, frozenset()) == [("sheet", True), ("weights", True)]


def test_parameters_of_a_source_are_those_about_what_the_chain_takes():
    def asked(taken):
        return [one.name for one in compose.parameters_for(toydomain.SourceParameters, frozenset(taken))]

    assert asked({"rows"}) == ["offset"]
    assert asked({"rows", "weights"}) == ["offset", "least_weight"]


def test_settings_fill_what_the_source_has():
    made = chain(SCALE, offset=3.5, strange=1)
    assert made.parameters == toydomain.SourceParameters(offset=3.5)
    assert made.fields == {"rows"}


# Inspection.


def test_inspections_see_what_is_expected_at_their_place(paths):
    made = chain(SCALE, LEVEL, COUNT)
    inspected = compose.inspect_chain(made, paths)
    assert [one.data for one in inspected.links] == [
        None,
        None,
        {"mean": None, "array": "level.centred", "shape": (5, 3)},
    ]
    assert inspected.state.rows.name == "rows"
    recipe = compose.make_recipe(made, inspected, RunName("mpiimg-toys", "run.json"))
    assert recipe.warnings == ("toy: from a file", "toy: to be counted")
    assert recipe.baseline == DOMAIN.baseline + (3 << 20)
    heavy = dataclasses.replace(inspected, state=dataclasses.replace(inspected.state, nbytes=1 << 20))
    assert compose.make_recipe(made, heavy, RunName("t", "r")).baseline == DOMAIN.baseline + (4 << 20)


def test_what_an_inspection_refuses_is_refused(paths):
    np.save(paths["sheet"], np.zeros((2, 100)))
    with pytest.raises(BadInput, match="rows are too long to be counted"):
        compose.inspect_chain(chain(LEVEL, COUNT), paths)
    np.save(paths["sheet"], np.zeros(3))
    with pytest.raises(BadInput, match="1 axes; rows have 2"):
        compose.inspect_chain(chain(SCALE), paths)


def test_a_source_is_told_what_the_chain_takes(paths):
    streamed = dataclasses.replace(DOMAIN, sources=(STREAMED,))
    for made, weighted in ((chain(SCALE, domain=streamed), False), (chain(LEVEL, domain=streamed), True)):
        state = compose.inspect_chain(made, paths).state
        assert (state.weights is not None) == weighted
        assert state.history == (f"took rows{' weights' * weighted}",)
    without = compose.inspect_chain(chain(LEVEL, domain=streamed), {**paths, "weights": None})
    assert without.state.weights is None


# Recipe.


def test_a_recipe_says_what_its_steps_declare(paths):
    recipe = recipe_of(chain(SCALE, LEVEL, COUNT), paths)
    assert (recipe.tool, recipe.stem, recipe.record) == ("mpiimg-toys", "sheet", "run.json")
    assert recipe.parameters == {"a": 1}
    assert recipe.kernels == ("support.toydomain:precompile", "support.toydomain:other")
    assert recipe.rates == {"read": 2e-9, "scale": 1e-9}
    assert recipe.sources["functions"] == {"count": {"made": "by hand"}}
    assert recipe.sources["rows"]["shape"] == (5, 3)
    assert recipe.files == (paths["sheet"],)
    (source,) = recipe.inputs
    assert isinstance(source, Input)
    assert source.array == Array("rows", "zx", (5, 3), "float64")
    assert recipe_of(chain(SCALE), paths, RunName("t", "r", stem="mine")).stem == "mine"
    assert "functions" not in recipe_of(chain(SCALE), paths).sources


def test_only_inputs_that_ranks_read_for_themselves_are_inputs_of_the_run(paths):
    """One that is read from front to back is what a stage makes."""
    streamed = dataclasses.replace(DOMAIN, sources=(STREAMED,))
    recipe = recipe_of(chain(LEVEL, domain=streamed), paths)
    assert [source.array.name for source in recipe.inputs] == ["weights"]
    first = recipe.expected[0]
    assert isinstance(first, Stream)
    assert (first.name, first.array.name) == ("read-rows", "rows")
    assert recipe.files == (paths["sheet"], paths["weights"])


def test_a_step_may_stand_twice(paths):
    """Its stages, arrays and results have the name of its link; arrays of the source keep theirs."""
    recipe = recipe_of(chain(SCALE, LEVEL, link(SCALE, "again", factor=0.5)), paths)
    stages = {stage.name: stage for stage in recipe.expected}
    assert [*stages] == [
        "scale",
        "level.mean",
        "level.above",
        "level.below",
        "level.write-level",
        "again",
        "again.write-rows",
    ]

    def reads(name):
        return [need.array.name for need in stages[name].reads]

    assert reads("scale") == ["rows"]
    assert [array.name for array in stages["scale"].arrays] == ["scale.scaled"]
    assert reads("level.mean") == ["scale.scaled"]
    assert [array.name for array in stages["level.mean"].arrays] == ["level.mean-rows"]
    assert [array.name for array in stages["level.below"].arrays] == ["level.centred"]
    assert reads("level.write-level") == ["level.centred", "scale.scaled"]
    assert reads("again") == ["scale.scaled"]
    assert reads("again.write-rows") == ["again.scaled"]
    *_, state = recipe.expected_state
    assert state.rows.name == "again.scaled"
    assert state.level.rows.name == "level.centred"
    assert [array.name for array in state.parts] == ["level.centred", "scale.scaled"]


def test_every_stage_that_may_come_is_planned(paths):
    recipe = recipe_of(chain(LEVEL), paths)
    assert names(recipe)[:3] == ["level.mean", "level.above", "level.below"]
    plan = plan_recipe(recipe, Resources(2, 1 << 30))
    assert [stage.name for stage, _ in plan] == names(recipe)


def test_plans_reckon_with_what_is_expected(paths):
    """The shape of an array follows from a value that only the run finds."""
    recipe = recipe_of(chain(SCALE, LEVEL, COUNT), paths)
    (fill,) = [stage for stage in recipe.expected if stage.name == "count.fill"]
    assert fill.arrays[0].shape == (15,)
    assert json.loads(recipe.documents(recipe.expected_state)["count.json"]) == {"count": 15}


def test_generators_are_driven_anew_each_time(paths):
    """By plans as well as by runs: they have no side effects."""
    recipe = recipe_of(chain(SCALE, LEVEL, COUNT), paths)
    for _ in range(2):
        stages = recipe.stages()
        assert [next(stages).name, stages.send(None).name] == ["scale", "level.mean"]
        assert stages.send(-1.0).name == "level.below"
        assert stages.send(None).name == "level.write-level"
        assert stages.send(None).name == "count"
        fill = stages.send(7)
        assert (fill.name, fill.arrays[0].shape) == ("count.fill", (7,))
        with pytest.raises(StopIteration) as end:
            stages.send(None)
        assert [state.parts[0].name for state in end.value.value[1:]] == ["level.centred", "count.picked"]
        assert recipe.documents(end.value.value)["count.json"] == b'{"count": 7}'


# Results.


def files(recipe):
    return sorted(output_names(recipe))


LEVELS = ["level-0.raw", "level-1.raw", "level-2.raw"]


def test_a_result_of_the_end_gives_way_to_steps_that_use_it(paths):
    assert files(recipe_of(chain(SCALE), paths)) == ["run.json", "sheet.gz", "sheet.json"]
    # LEVEL takes rows: they are written no more; and what LEVEL gives always is, in its place.
    assert files(recipe_of(chain(SCALE, LEVEL), paths)) == [*LEVELS, "run.json"]
    # A step that gives it anew counts as well as one that takes it, and one that may take it.
    for other in ({"takes": (), "gives": ("rows",)}, {"takes": (), "gives": (), "may_take": ("rows",)}):
        unlike = dataclasses.replace(LEVEL, name="unlike", stages=nothing, outputs=(), may_take=())
        last = dataclasses.replace(unlike, **other)
        assert "sheet.gz" not in files(recipe_of(chain(SCALE, last), paths))
    last = dataclasses.replace(unlike, takes=(), gives=("level",))
    assert "sheet.gz" in files(recipe_of(chain(SCALE, last), paths))


def test_a_flag_is_idle_where_its_result_is_written_without_it():
    assert compose.idle_flags([SCALE]) == {"keep"}
    assert compose.idle_flags([SCALE, LEVEL]) == set(), "LEVEL takes the rows: they are kept on request only"
    always = dataclasses.replace(SCALE.outputs[0], when="always")
    assert compose.idle_flags([dataclasses.replace(SCALE, outputs=(always,)), LEVEL]) == {"keep"}


def nothing(state, p, data):
    """Yield nothing."""
    return state
    yield


def test_what_is_used_later_goes_to_a_folder_of_its_own(paths):
    recipe = recipe_of(chain(link(SCALE, keep=True), LEVEL, COUNT), paths)
    assert files(recipe) == [
        "count.json",
        *(f"level/{name}" for name in LEVELS),
        "run.json",
        "scaled/sheet.gz",
        "scaled/sheet.json",
    ]
    assert names(recipe)[:2] == ["scale", "scale.write-rows"], "results are written right after their step"


def test_a_link_may_write_nothing_but_what_is_asked_for(paths):
    quiet = link(LEVEL, write=False)
    assert files(recipe_of(chain(SCALE, quiet), paths)) == ["run.json"]
    assert files(recipe_of(chain(link(SCALE, write=False)), paths)) == ["run.json"]
    asked = link(SCALE, write=False, keep=True)
    assert files(recipe_of(chain(asked), paths)) == ["run.json", "sheet.gz", "sheet.json"]


def test_an_output_may_have_nothing_to_write(paths):
    silent = Link(LEVEL, toydomain.LevelParameters(write="nothing"), "level")
    assert files(recipe_of(chain(silent), paths)) == ["run.json"]


def test_documents_say_what_the_state_was_at_their_step(paths):
    first = link(SCALE, "first", keep=True, factor=4)
    recipe = recipe_of(chain(first, link(SCALE, "second")), paths)
    documents = recipe.documents(recipe.expected_state)
    assert {name: json.loads(text)["history"] for name, text in documents.items()} == {
        "scaled/sheet.json": ["took rows", "scaled by 4"],
        "sheet.json": ["took rows", "scaled by 4", "scaled by 2"],
    }


def test_history_has_a_line_of_each_step_before_its_results_are_declared(paths):
    seen = []
    output = Output("rows", lambda state, p, folder: seen.append(state.history))
    plain = dataclasses.replace(SCALE, outputs=(output,), history=None)
    silent = dataclasses.replace(plain, name="silent", history=lambda p: ())
    recipe = recipe_of(chain(plain, silent), paths)
    assert recipe.expected_state[-1].history == ("took rows", "scale: factor 2.0 1, power None, keep False")
    assert seen == [recipe.expected_state[-1].history] * 2


def test_two_results_of_one_name_are_refused(paths):
    """A kept sheet that is the last one of the chain as well, and a document of the record's name."""
    twice = chain(link(SCALE, "first", keep=True), link(SCALE, "second", keep=True), LEVEL)
    with pytest.raises(
        BadInput, match=r"^mpiimg-toys: two results would be called scaled/sheet\.gz; say write = false"
    ):
        recipe_of(twice, paths)
    with pytest.raises(BadInput, match=r"two results would be called count\.json"):
        recipe_of(chain(LEVEL, COUNT), paths, RunName("mpiimg-toys", "count.json"))


# What stages depend on.


def depends_on(recipe, name):
    (stage,) = [stage for stage in recipe.expected if stage.name == name]
    return stage.parameters, stage.follows


def test_a_stage_that_says_nothing_depends_on_all_before_it(paths):
    """On all parameters so far, and on all that was found; one that says something depends on that."""
    made = chain(link(SCALE, factor=3.0), LEVEL, COUNT, offset=1.5)
    recipe = recipe_of(made, paths)
    assert depends_on(recipe, "scale") == ({"factor": 3.0, "power": None}, ())
    parameters, follows = depends_on(recipe, "count.fill")
    assert parameters == {
        "": {"offset": 1.5, "least_weight": 0.0},
        "scale": {"factor": 3.0, "power": None, "keep": False, "internal": 3},
        "level": {"write": "all"},
        "count": {},
    }
    assert follows == ("level.mean-rows", "count-rows")
    parameters, follows = depends_on(recipe, "level.mean")
    assert [*parameters] == ["", "scale", "level"]
    assert follows == ()
    assert depends_on(recipe, "level.above")[0] == {"mean": None}


def test_what_a_stage_says_it_follows_is_what_its_own_step_has_reduced(paths):
    """By the names that the step itself knows, as arrays are; the rows may be read as well."""

    def stages(sheet, p, data):
        for name in ("own", "other"):
            found = yield dataclasses.replace(
                next(toydomain.LEVEL.stages(sheet, p, data)), name=name, reads=(Part(sheet.rows),)
            )
        made = Array("made", "k", (3,), "float64")
        yield Compute(
            "use",
            ChunkGrid("k", (3,), (1,)),
            reads=(Part(Array("own-rows", "k", (3,), "float64")),),
            writes=(made,),
            work=lambda chunk, row: (row,),
            parameters={},
            follows=("own-rows", "other-rows"),
        )
        return dataclasses.replace(sheet, level=toydomain.Level(found, made))

    own = dataclasses.replace(LEVEL, name="own", stages=stages, outputs=())
    recipe = recipe_of(chain(link(own, "here")), paths)
    use = recipe.expected[-1]
    assert use.follows == ("here-rows", "here.other-rows")
    assert [need.array.name for need in use.reads] == ["here-rows"]
    written = {array.name for stage in recipe.expected for array in stage.arrays}
    assert written == {"here-rows", "here.other-rows", "here.made"}


def test_reductions_and_maps_are_stages_as_before(paths):
    """A label changes names alone."""
    recipe = recipe_of(chain(SCALE, LEVEL), paths)
    kinds = {stage.name: type(stage) for stage in recipe.expected}
    assert (kinds["scale"], kinds["level.mean"]) == (Compute, Reduce)
    (mean,) = [stage for stage in recipe.expected if stage.name == "level.mean"]
    assert (mean.expected, mean.finish_bytes) == (None, 5 << 20)


def test_no_step_writes_an_array_that_the_source_has():
    """Else its later stages could not tell which of the two they read."""

    def stages():
        sheet = Array("rows", "k", (4,), "int64")
        yield Compute("copy", ChunkGrid("k", (4,), (1,)), writes=(sheet,), work=lambda chunk: ())

    with pytest.raises(ValueError, match="the source has an array rows too"):
        list(labelled(stages(), "copy", "copy", {"rows"}))


def test_results_are_written_by_stages_of_their_step(paths):
    """So that a step may stand twice, each with results of its own."""
    recipe = recipe_of(chain(LEVEL), paths)
    written = [stage.name for stage in recipe.expected if stage.files]
    assert written and all(name.startswith("level.") for name in written)
