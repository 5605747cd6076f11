"""The request of a run of mpiimg-run: a user's function, or a chain of steps of whatever domain."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpiimg.engine import plugins, presets
from mpiimg.engine.names import asking
from mpiimg.engine.parameters import checked, checked_path, holds_controls, parameters_of
from mpiimg.engine.small_files import read_text
from mpiimg.engine.step import Domain, Preset
from mpiimg.errors import BadInput
from mpiimg.functions.declare import OVER_SURVEYS
from mpiimg.functions.function import Function
from mpiimg.functions.load import from_object, from_text, read_params
from mpiimg.functions.wiring import IMAGE, MASK, Place, Wiring, check_name, names_in, wired

#: Keys of a stage that is a user's function; the first five go into its declaration.
DECLARED = ("over", "halo", "dtype", "components", "slices")
KEYS = (*DECLARED, "udf", "name", "params", "write", "reads", "gives")

#: Keys of a stage that is a step, beside its parameters.
STEP_KEYS = ("tool", "name", "write")

#: Labels that results of our steps have.
RESERVED_LABELS = ("brain", "denoised", "noise", "residual")

#: Characters of a label, which stands in names of files beside others.
MAX_LABEL = 100

#: Domains whose steps may be named without them, in the order in which they are searched.
UNNAMED = ("neuro", "astro")


@dataclass(frozen=True)
class Entry:
    """A stage of a user's pipeline: a step, or a function.

    Parameters
    ----------
    label : str
        Tells it from other entries, in logs and in names of files.
    step : str
        "module:attribute" of a step; empty for a function.
    function : Function, optional
        The user's.
    settings : mapping
        Parameters of a step that were set.
    write : bool
        Whether the result is written.
    wiring : Wiring
        What a function over an image reads and gives.
    """

    label: str
    step: str = ""
    function: Function | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    write: bool = True
    wiring: Wiring = field(default_factory=Wiring)


@dataclass(frozen=True)
class Request:
    """A run of mpiimg-run as plain data, which is sent to all ranks.

    Parameters
    ----------
    domain : str
        The domain whose data it works on.
    entries : tuple of Entry
    inputs : tuple of Path
        Files, or one folder.
    target : Path, optional
        File of the result of a single function; None where results go to a folder.
    name : str
        The pipeline's.
    domain_place : str
        "module:attribute" of the domain.
    settings : mapping
        Parameters of the source that were set.
    named : mapping of str to str
        Paths of further images that functions read, by the names that they read them by.
    recipe : str
        Of the domain, that gave parameters of steps their values; empty for none.
    """

    domain: str
    entries: tuple[Entry, ...]
    inputs: tuple[Path, ...]
    target: Path | None
    name: str
    domain_place: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""


def requested(values: Mapping[str, Any]) -> Request:
    """Return the request that the command line, or a call from Python, makes.

    Parameters
    ----------
    values : mapping
        Those of arguments and parameters by name; from Python also `stages` and `name`, or `target`.

    Raises
    ------
    BadInput
        It does not say what to run on what, or a stage makes no sense.
    """
    files = values["files"]
    if values.get("stages") is not None:
        stages = _Stages("stages", Path(), "")
        target = None if values["out"] else Path(values["target"])
        return stages.read(values["stages"]).request(values, files, target, values["name"])
    if values["udf"] is not None:
        return _one_function(values, files)
    misplaced = [f"--{name}" for name in DECLARED if values[name] is not None]
    if misplaced:
        raise BadInput(f"{misplaced[0]} is for --udf; a pipeline says it in its TOML file")
    first = Path(files[0])
    if first.suffix != ".toml" and not _names_step(files[0]):
        raise BadInput(f"{first}: give --udf FILE.py:NAME, or a pipeline (.toml) and its input")
    if not values["out"] or len(files) < 2:
        raise BadInput(f"{first}: give its input too, and --out DIR")
    if first.suffix != ".toml":
        return _one_step(values, files)
    if values["param"]:
        raise BadInput("--param is for --udf; a pipeline says it in its TOML file")
    stages = _Stages(str(first), first.parent, "")
    return stages.read(stages.content(first)).request(values, files[1:], None, str(first))


def _one_function(values: Mapping[str, Any], files: Sequence[str]) -> Request:
    if not values["out"] and len(files) < 2:
        raise BadInput("give a file to read and one to write, as in: in.nii.gz out.nii.gz")
    declared = {key: values[key] for key in DECLARED}
    function = from_text(values["udf"], Path(), read_params(values["param"] or ()), declared)
    *inputs, target = files if not values["out"] else (*files, None)
    stages = _Stages(function.name, Path(), "")
    stages.entries.append(Entry(function.name, function=function))
    return stages.request(values, inputs, Path(target) if target else None, function.name)


def _names_step(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z]\w*:[A-Za-z][\w-]*", text) is not None and not Path(text).exists()


def _one_step(values: Mapping[str, Any], files: Sequence[str]) -> Request:
    """Read DOMAIN:NAME, a step or a pipeline, with its parameters by --param."""
    domain_name, _, word = files[0].partition(":")
    domain = plugins.domain(domain_name)
    names = (word,)
    if word in domain.pipelines:
        recipe = values.get(presets.NAME)
        left_out = presets.preset_of(domain, recipe, "--recipe").without if recipe else ()
        names = tuple(name for name in domain.pipelines[word].steps if name not in left_out)
    stages = _Stages(files[0], Path(), domain_name)
    params = read_params(values["param"] or ())
    tables = []
    for name in names:
        parameters = {one.name for one in parameters_of(plugins.step(domain, name).parameters)}
        tables.append({"tool": name, **{key: params.pop(key) for key in list(params) if key in parameters}})
    tables[0] |= params  # those of the source; or refused, as any key that nobody has
    return stages.read(tables).request(values, files[1:], None, files[0])


class _Stages:
    """Reads the stages of a pipeline: tables as TOML has them, or functions that are at hand.

    Parameters
    ----------
    where : str
        Names the pipeline in messages.
    base : Path
        The folder that files of functions are in.
    domain : str
        The domain of steps that are named without one; empty to look through our own.
    """

    def __init__(self, where: str, base: Path, domain: str):
        self.where, self.base, self.domain = where, base, domain
        self.entries: list[Entry] = []
        self.settings: dict[str, Any] = {}
        self.named: dict[str, str] = {}
        self.recipe = ""

    def content(self, path: Path) -> list:
        """Return the tables of a TOML file, and take the domain that it names."""
        try:
            content = tomllib.loads(read_text(path, "this pipeline"))
        except (ValueError, RecursionError) as error:  # of numbers of thousands of digits, and deep nesting
            raise BadInput(f"{path}: not TOML: {error}") from None
        self.domain = content.pop("domain", "")
        if not isinstance(self.domain, str):
            raise BadInput(f"{path}: domain = {self.domain!r}: must be the name of a domain")
        self.named = self._inputs(content.pop("inputs", {}))
        self.recipe = content.pop(presets.NAME, "")
        if not isinstance(self.recipe, str):
            raise BadInput(f"{path}: recipe = {self.recipe!r}: must be the name of a recipe")
        if set(content) != {"stage"} or not isinstance(content["stage"], list):
            raise BadInput(
                f"{path}: a pipeline is made of [[stage]] tables and nothing else, "
                "but [inputs] for files that functions read, recipe = NAME for values of parameters, and "
                "domain = NAME for steps that are not ours"
            )
        return content["stage"]

    def _inputs(self, table: Any) -> dict[str, str]:
        """Return the paths of [inputs] by name; relative ones are of the folder of the pipeline."""
        place = f"{self.where}: [inputs]"
        if not isinstance(table, Mapping):
            raise BadInput(f'{place}: must be a table, as in fieldmap = "fieldmap.nii.gz"')
        for name, path in table.items():
            check_name(name, place)
            if name in (IMAGE, MASK):
                raise BadInput(f"{place}: {name} is given on the command line; give this file another name")
            checked_path(path, f"{place}: {name} =")
        return {name: str(self.base / path) for name, path in table.items()}

    def read(self, stages: Sequence) -> _Stages:
        """Read all stages.

        Raises
        ------
        BadInput
            A stage makes no sense, or two have one name.
        """
        for number, stage in enumerate(stages, 1):
            place = f"{self.where}: stage {number}"
            table = {"udf": stage} if callable(stage) else stage
            if not isinstance(table, Mapping) or len({"tool", "udf"} & set(table)) != 1:
                raise BadInput(f"{place}: give either tool = one of ours, or udf = FILE.py:NAME")
            entry = self._step(table, place) if "tool" in table else self._function(table, place)
            earlier = [bids_label(one.label) for one in self.entries]
            if entry.step and entry.label == table["tool"].rpartition(":")[2]:
                entry = dataclasses.replace(entry, label=self._numbered(entry.label))
            elif bids_label(entry.label) in (*earlier, *RESERVED_LABELS):
                raise BadInput(
                    f"{place}: another result is called {bids_label(entry.label)}; give the stage a name"
                )
            self.entries.append(entry)
        if not self.entries:
            raise BadInput(f"{self.where}: holds no [[stage]]")
        return self

    def _numbered(self, name: str) -> str:
        """Return a label for a step that may stand there already."""
        labels = [one.label for one in self.entries]
        return next(
            one for one in (name, *(f"{name}-{n}" for n in range(2, len(labels) + 3))) if one not in labels
        )

    def _step(self, table: Mapping, place: str) -> Entry:
        domain, name = self._find(table["tool"], place)
        self.domain = self.domain or domain.name
        if self.domain != domain.name:
            raise BadInput(
                f"{place}: {name} is a step of {domain.name}, and other stages are of {self.domain}"
            )
        declared_at = plugins.step_place(domain, name)
        own = {one.name: one for one in parameters_of(plugins.load_object(declared_at).parameters)}
        of_sources = {one.name: one for s in domain.sources for one in parameters_of(s.parameters)}
        settings = {}
        for key, value in table.items():
            word = key.replace("-", "_")
            if word in STEP_KEYS:
                continue
            if word in ("reads", "gives"):
                raise BadInput(
                    f"{place}: {key} is of functions: {name} works on the image and the mask, which a "
                    'function before it may give by gives = ["image"] or ["mask"]'
                )
            if word != key and word in table:
                raise BadInput(f"{place}: {key} and {word} are one parameter; give it once")
            if word in own:
                settings[word] = checked(own[word], value, f"{place}: {key} =")
            elif word in of_sources:
                self.settings[word] = checked(of_sources[word], value, f"{place}: {key} =")
            else:
                has = f"it has {', '.join(own)}" if own else "it has none"
                raise BadInput(asking(f"{place}: {name} has no parameter {key!r}; {has}", key, own))
        return Entry(_named(table, name, place), declared_at, settings=settings, write=_written(table, place))

    def _find(self, text: Any, place: str) -> tuple[Domain, str]:
        """Return the domain of a step, and its name without it."""
        domain_name, _, name = str(text).rpartition(":")
        ours = dict.fromkeys((*([self.domain] if self.domain else []), *UNNAMED))
        candidates = [domain_name] if domain_name else list(ours)
        for candidate in candidates:
            domain = plugins.domain(candidate)
            if name in domain.steps or name in plugins.step_names(domain):
                return domain, name
        names = [step for one in candidates for step in plugins.step_names(plugins.domain(one))]
        raise BadInput(f"{place}: no tool {text!r} can be a stage; there are {', '.join(names)}")

    def _function(self, table: Mapping, place: str) -> Entry:
        unknown = [key for key in table if key not in KEYS]
        if unknown:
            said = f"{place}: no key {unknown[0]!r}; a function has {', '.join(KEYS)}"
            raise BadInput(asking(said, unknown[0], KEYS))
        params = table.get("params", {})
        if not isinstance(params, Mapping):
            raise BadInput(f"{place}: params is a table, as in params = {{ strength = 0.5 }}")
        declared = {key: table.get(key) for key in DECLARED}
        code = table["udf"]
        try:
            if callable(code):
                function = from_object(code, params, declared)
            elif isinstance(code, str):
                function = from_text(code, self.base, params, declared)
            else:
                raise BadInput(f"udf = {code!r}: name a function as FILE.py:NAME or MODULE:NAME")
        except BadInput as error:
            raise BadInput(f"{place}: {error}") from None
        label = _named(table, function.name, place)
        wiring = self._wiring(table, function, label, place)
        function = dataclasses.replace(function, inputs=len(wiring.reads))
        return Entry(label, function=function, write=wiring.write, wiring=wiring)

    def _wiring(self, table: Mapping, function: Function, label: str, place: str) -> Wiring:
        """Return what a function reads and gives."""
        reads, gives = (names_in(table, key, place) for key in ("reads", "gives"))
        if (reads or gives) and function.declared.over in OVER_SURVEYS:
            raise BadInput(f"{place}: reads and gives are of functions over an image, not over a survey")
        if gives and function.aggregate:
            raise BadInput(f"{place}: gives: {function.name} makes no image; what it makes is only written")
        # What has a name of its own is written by that name.
        own = [label if name in (IMAGE, MASK) else name for name in gives]
        labels = tuple(bids_label(name) for name in own)
        if len(set(labels)) < len(labels):
            raise BadInput(f"{place}: gives: two results would be called {label}; give the others names")
        return Wiring(reads or (IMAGE,), gives, labels, write=_written(table, place))

    def request(self, values: Mapping[str, Any], inputs: Sequence, target: Path | None, name: str) -> Request:
        """Return the request of these stages.

        Raises
        ------
        BadInput
            A function is for another domain than the steps.
        """
        functions = [entry for entry in self.entries if entry.function is not None]
        for entry in functions:
            domain = "astro" if entry.function.declared.over in OVER_SURVEYS else "neuro"
            self.domain = self.domain or domain
            if domain != self.domain:
                raise BadInput(
                    f"{name}: stage {entry.label} is not for {self.domain}, as other stages are: "
                    f"it is over {entry.function.declared.over}"
                )
        entries = [self._with_reference(entry, values.get("reference")) for entry in self.entries]
        if self.domain == "neuro":
            entries = self._wired(entries, values, name)
        elif self.named:
            raise BadInput(f"{name}: [inputs] are of functions over an image, and there is none")
        recipe = values.get(presets.NAME) or self.recipe
        settings = dict(self.settings)
        if recipe:
            preset = presets.preset_of(plugins.domain(self.domain), recipe, f"{name}: recipe")
            entries = [_with_preset(entry, preset) for entry in entries]
            settings = {**preset.values, **settings}
        paths = tuple(map(Path, inputs))
        place = plugins.domain_place(self.domain)
        return Request(self.domain, tuple(entries), paths, target, name, place, settings, self.named, recipe)

    def _wired(self, entries: Sequence[Entry], values: Mapping[str, Any], name: str) -> list[Entry]:
        """Return the entries, with the names checked that go from one to the next."""
        given = read_params(values.get("input") or ())
        read = {one for entry in entries if entry.function for one in entry.wiring.reads}
        self.named |= {one: str(path) for one, path in given.items() if one in read}
        places = []
        for entry in entries:
            function = entry.function
            of_function = (entry.wiring, "mask" in function.wants, function.aggregate) if function else ()
            places.append(Place(entry.label, *of_function))
        done = wired(places, self.named, name)
        return [
            entry if one is None else dataclasses.replace(entry, wiring=one)
            for entry, one in zip(entries, done, strict=True)
        ]

    def _with_reference(self, entry: Entry, reference: str | None) -> Entry:
        """Give a step that takes one the reference catalogue of the command line."""
        if reference is None or not entry.step:
            return entry
        names = [one.name for one in parameters_of(plugins.load_object(entry.step).parameters)]
        if "reference" not in names:
            return entry
        return dataclasses.replace(entry, settings={**entry.settings, "reference": reference})


def _with_preset(entry: Entry, preset: Preset) -> Entry:
    """Return an entry with the values of a recipe for the parameters that its stage does not set."""
    if not entry.step:
        return entry
    names = {one.name for one in parameters_of(plugins.load_object(entry.step).parameters)}
    values = {name: value for name, value in preset.values.items() if name in names}
    return dataclasses.replace(entry, settings={**values, **entry.settings})


def _named(table: Mapping, usual: str, place: str) -> str:
    """Return the label that a stage gives itself, which is part of the names of files, or the usual one."""
    name = table.get("name", usual)
    if not isinstance(name, str) or holds_controls(name) or "/" in name or not name.strip(" ."):
        raise BadInput(f"{place}: name = {name!r}: must be a text without slashes and control characters")
    if len(name) > MAX_LABEL:
        raise BadInput(f"{place}: name = {name[:MAX_LABEL]!r}...: has more than {MAX_LABEL} characters")
    return name


def _written(table: Mapping, place: str) -> bool:
    write = table.get("write", True)
    if not isinstance(write, bool):
        raise BadInput(f"{place}: write = {write!r}: must be true or false")
    return write


def bids_label(name: str) -> str:
    """Return a name as BIDS has labels: letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", name) or "result"
