"""The identity of a function: a digest of all that its results depend on beside its arguments.

It follows from the instructions of the function and of what it calls, not from the text: from its constants,
defaults, closure, the values of the global names that it reads, the attributes of the instance that it is
bound to, and the modules that it imports. Lines, file names, comments, docstrings, annotations and the names
of functions do not count, nor does the order of a set; that of a dict does, since a loop sees it.
It is the same in all processes, in `__main__`, in a module and after cloudpickle.

What cannot be known (an open file, a random generator, a name that code looks up by text) makes the identity
unknown, and it says why: what was made by such a function must not be taken for what it would make now.

Not seen: what a function reads of files and of the environment when it runs, and what is set after import in
a module that the function imports in its body.
"""

from __future__ import annotations

import functools
import marshal
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mpiimg.arrays import bytecode, modules
from mpiimg.arrays.hashing import hashed
from mpiimg.arrays.modules import is_local, is_local_module, module_of
from mpiimg.arrays.values import describe

#: The first of what every digest has: another version of Python runs other instructions.
_PYTHON = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"

#: Types that marshal writes without references, so that equal values have equal bytes.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})

#: Functions by which code looks up names, or makes code, from text.
_BY_TEXT = frozenset({"eval", "exec", "globals"})

#: What every class has of its own, or for nobody but tools.
_NOT_OF_A_CLASS = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__mpiimg_udf__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__parameters__"),
    *("__firstlineno__", "__static_attributes__", "__match_args__", "__slotnames__", "__orig_bases__"),
    *("__dataclass_fields__", "__dataclass_params__", "__abstractmethods__", "_abc_impl"),
}

#: Methods that set the attributes of an instance when it is made.
_MAKERS = {"__init__", "__new__", "__post_init__", "__setstate__", "__init_subclass__"}

#: Attributes of a function that say nothing of what it does: what is wrapped lies in the closure.
_NOT_OF_A_FUNCTION = frozenset({"__wrapped__", "__mpiimg_udf__"})


@dataclass(frozen=True)
class Identity:
    """What a function, or any other value, is known by.

    Parameters
    ----------
    digest : str
        32 digits, the same wherever the same is computed.
    known : bool
        Whether all that results depend on is in it.
    why : str
        Where it is not: what cannot be known, as the end of a sentence.
    """

    digest: str
    known: bool
    why: str = ""


def identity(function: Any, *more: Any) -> Identity:
    """Return what a function, with the values that it is called with, is known by at this moment.

    Parameters
    ----------
    function : callable
        Or any value.
    *more : object
        Further values, as its keywords.
    """
    walk, values = Walk(), (_PYTHON, function, *more)
    try:
        digest = walk.of(values)
        if walk.changing():
            # What changes when it is called differs between ranks, which are called for different chunks.
            walk = Walk(walk.changing())
            digest = walk.of(values)
    except RecursionError:
        return Identity(hashed(b"deep", str(type(function))).hex(), False, "its values are nested too deeply")
    return Identity(digest.hex(), not walk.unknown, walk.unknown[0] if walk.unknown else "")


class Walk:
    """One walk through all that a value is made of.

    Each value has the digest of its parts; a value that holds itself has, inside, the number of steps back.

    Parameters
    ----------
    left_out : mapping
        What an earlier walk has found to be changed by the code itself, and how to say so: by the address of
        a value, or that of a class and the name of an attribute.
    """

    def __init__(self, left_out: Mapping[Any, str] = MappingProxyType({})):
        # The values are kept: the address of one that is gone may become that of another.
        self._done: dict[Any, tuple[Any, bytes]] = {}
        self._open: dict[Any, int] = {}
        self._labels: list[str] = []
        self.unknown: list[str] = []
        self._left_out = left_out
        self._changed: dict[Any, tuple[Any, str]] = {}
        self._called = {"__call__"}
        self._methods: dict[str, set[str]] = {}
        self._writers: list[tuple[type, str, str]] = []

    def changing(self) -> dict[Any, str]:
        """Return what the code that was walked through changes when it is called."""
        found = {key: text for key, (_, text) in self._changed.items()}
        called, more = set(), self._called
        while not more <= called:
            called |= more
            more = {name for method in called for name in self._methods.get(method, ())}
        for kind, method, name in self._writers:
            if method in called:
                found[id(kind), name] = f"{kind.__name__}.{method}() changes the attribute {name}"
        return found

    def called(self, name: str) -> None:
        """Note the name of a method that is called."""
        self._called.add(name)

    def _note_change(self, value: Any, text: str) -> None:
        plain = isinstance(value, types.ModuleType) or type(value) in _PLAIN
        if not plain:
            self._changed[id(value)] = value, text

    def of(self, value: Any, *context: Any) -> bytes:
        """Return the digest of a value; `context` are the globals that a code object reads."""
        if type(value) in _PLAIN:
            return hashed(b"plain", marshal.dumps(value, 2))
        if id(value) in self._left_out and not isinstance(value, types.FunctionType | type):
            self.doubt_code(self._left_out[id(value)])
            return hashed(b"changed")
        key = (id(value), *map(id, context))
        if key in self._done:
            return self._done[key][1]
        if key in self._open:
            return hashed(b"above", str(len(self._open) - self._open[key]))
        self._open[key] = len(self._open)
        try:
            digest = self._described(value, *context)
        finally:
            del self._open[key]
        self._done[key] = ((value, context), digest)
        return digest

    def doubt(self, what: str) -> bytes:
        """Note what cannot be known, and return what stands for it."""
        where = next((label for label in reversed(self._labels)), "it")
        self.unknown.append(f"{where} is {what}")
        return hashed(b"unknown", what)

    def doubt_code(self, what: str) -> None:
        """Note what code does that cannot be known."""
        self.unknown.append(what)

    @contextmanager
    def within(self, label: str) -> Iterator[None]:
        """Say where a value lies that is walked through in the block."""
        self._labels.append(label)
        try:
            yield
        finally:
            self._labels.pop()

    # --- Values, by kind ----------------------------------------------------------------------------------

    def _described(self, value: Any, *context: Any) -> bytes:
        if context:
            return self.code(value, *context)
        kind = type(value)
        if isinstance(value, type):
            return self._class(value)
        tokenize = getattr(kind, "__dask_tokenize__", None)
        if tokenize is not None:
            try:
                return hashed(b"token", self.named(kind), self.of(value.__dask_tokenize__()))
            except ImportError:
                pass  # those of xarray call dask, which need not be there
            except Exception as error:
                return self.doubt(f"a {kind.__name__}, whose __dask_tokenize__ failed: {error}")
        return describe(self, value)

    def sequence(self, tag: bytes, items: Iterable[Any]) -> bytes:
        """Return the digest of values in their order."""
        items = tuple(items)
        if len(items) > 8 and set(map(type, items)) <= _PLAIN:
            return hashed(tag, b"all plain", marshal.dumps(items, 2))
        return hashed(tag, *map(self.of, items))

    def mapping(self, tag: bytes, items: Mapping[Any, Any], ordered: bool = True) -> bytes:
        """Return the digest of names, or keys, and values."""
        pairs = items.items() if ordered else sorted(items.items(), key=lambda pair: str(pair[0]))
        parts = []
        for key, one in pairs:
            with self.within(f"{key!r}" if isinstance(key, str | int) else "a value"):
                parts += [self.of(key), self.of(one)]
        return hashed(tag, *parts)

    def unordered(self, tag: bytes, items: Iterable[Any]) -> bytes:
        """Return the digest of values in no order: each for itself, lest the order be seen in cycles."""
        digests = []
        for one in items:
            if type(one) in _PLAIN:
                digests.append(self.of(one))
            else:
                kept, self._done = self._done, {}
                digests.append(self.of(one))
                self._done = kept
        return hashed(tag, *sorted(digests))

    def attributes(self, value: Any, skipped: Iterable[str] = ()) -> bytes:
        """Return the digest of what an instance has in its __dict__ and its __slots__."""
        kind = type(value)
        found = {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in skipped}
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                name = f"_{base.__name__.lstrip('_')}{slot}" if _is_private(slot) else slot
                if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                    found[name] = getattr(value, name)
        parts = []
        for name in sorted(found, key=str):
            if isinstance(getattr(kind, str(name), None), functools.cached_property):
                continue  # it follows from the others
            if any((id(base), name) in self._left_out for base in kind.__mro__):
                continue
            with self.within(f"attribute {name} of a {kind.__name__}"):
                parts += [str(name), self.of(found[name])]
        return hashed(b"attributes", *parts)

    # --- Functions ----------------------------------------------------------------------------------------

    def function(self, function: types.FunctionType) -> bytes:
        """Return the digest of a function: its code, and the values that come with it."""
        parts = [self.of(function.__code__, function.__globals__)]
        with self.within("a default"):
            parts.append(self.of(function.__defaults__))
        parts.append(self.mapping(b"keywords", function.__kwdefaults__ or {}, ordered=False))
        names = function.__code__.co_freevars
        for name in bytecode.set_around(function.__code__):
            self.doubt_code(f"it sets {name} of the function around it")
        changed = set()
        if _is_local(function.__globals__):
            changed = {change.name for change in bytecode.changed_around(function.__code__)}
        for name, cell in zip(names, function.__closure__ or (), strict=False):
            if name in changed and cell != types.CellType():
                self._note_change(cell.cell_contents, f"it changes {name} of the function around it")
            with self.within(f"{name}, which it takes from the function around it,"):
                parts.append(self.cell(cell))
        own = {name: one for name, one in vars(function).items() if name not in _NOT_OF_A_FUNCTION}
        if id(function) in self._left_out:
            self.doubt_code(self._left_out[id(function)])
            own = {}
        return hashed(b"function", *parts, self.mapping(b"own", own, ordered=False))

    def cell(self, cell: types.CellType) -> bytes:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return hashed(b"empty")

    def code(self, code: types.CodeType, names: Mapping[str, Any]) -> bytes:
        """Return the digest of instructions, and of what they read where `names` are the globals."""
        found = bytecode.instructions(code)
        parts = [code.co_code, getattr(code, "co_exceptiontable", b""), str(code.co_flags)]
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        words = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        parts += [marshal.dumps((counts, words), 2)]
        for constant in found.constants:
            inner = isinstance(constant, types.CodeType)
            parts.append(self.of(constant, names) if inner else self.of(constant))
        if not _is_local(names):
            return hashed(b"code", *parts, self.module(str(names.get("__name__"))))
        self._called |= found.attributes
        for change in found.changes:
            if change.kind == "global" and change.name in names:
                self._note_change(names[change.name], f"it changes the global {change.name}")
        for reading in found.readings:
            parts += [reading.name, *self._read(reading, names, found.written)]
        package = _package(names)
        for statement in found.imports:
            for name in modules.resolved(statement, package):
                parts.append(self.module(name))
        for name in found.written:
            self.doubt_code(f"it sets the global {name}")
        return hashed(b"code", *parts)

    def _read(self, reading: bytecode.Reading, names: Mapping[str, Any], written: tuple) -> Iterator[bytes]:
        """Yield the digests of a global name, and of the attributes of modules that are read by it."""
        if reading.name in written:
            return
        nothing = object()
        value = names.get(reading.name, nothing)
        if value is nothing:
            yield hashed(b"builtin", reading.name)
            if reading.name in _BY_TEXT:
                self.doubt_code(f"it calls {reading.name}(), by which names are looked up by text")
            if reading.name == "__import__":
                yield from self._imported_by_text(reading, names)
            return
        with self.within(f"the global {reading.name}"):
            yield self.of(value)
        path = reading.name
        for attribute in reading.attributes:
            if not isinstance(value, types.ModuleType):
                break
            path = f"{path}.{attribute}"
            if value.__name__ == "importlib" and attribute == "import_module":
                yield from self._imported_by_text(reading, names)
            place = modules.place_of(value.__name__)
            if place is None or not place.is_local:
                break
            value = vars(value).get(attribute, nothing)
            if value is nothing:
                break
            with self.within(f"the global {path}"):
                yield self.of(value)
        if getattr(value, "__name__", "") == "import_module" and value is not names.get("importlib"):
            yield from self._imported_by_text(reading, names)

    def _imported_by_text(self, reading: bytecode.Reading, names: Mapping[str, Any]) -> Iterator[bytes]:
        if isinstance(reading.argument, str):
            text = reading.argument.lstrip(".")
            statement = bytecode.Import(text, len(reading.argument) - len(text))
            yield from map(self.module, modules.resolved(statement, _package(names)))
        else:
            self.doubt_code("it imports a module whose name is known only when it runs")

    # --- Classes and modules ------------------------------------------------------------------------------

    def module(self, name: str) -> bytes:
        """Return the digest of a module: see :func:`mpiimg.arrays.modules.described`."""
        if name == "__main__":
            return self.doubt("the module __main__ as a whole")
        facts = modules.described(name)
        for one, _ in facts:
            if modules.is_stale(one):
                self.doubt_code(f"the module {one} was changed after it was imported; start Python anew")
        return hashed(b"module", *(part for fact in facts for part in fact))

    def named(self, kind: type) -> bytes:
        """Return the digest of a class by name and module; that of a local one tells what it is made of."""
        if is_local(kind):
            return self.of(kind)
        return hashed(b"class", kind.__qualname__, self.module(module_of(kind)))

    def _class(self, kind: type) -> bytes:
        if not is_local(kind):
            return self.named(kind)
        parts = [kind.__name__, *map(self.of, kind.__bases__)]
        if type(kind) is not type:
            parts.append(self.of(type(kind)))
        own = {name: one for name, one in vars(kind).items() if name not in _NOT_OF_A_CLASS}
        for key, text in self._left_out.items():
            if key == id(kind) or (isinstance(key, tuple) and key[0] == id(kind)):
                self.doubt_code(text)
        if id(kind) in self._left_out:
            own = {name: one for name, one in own.items() if callable(one)}
        for name, one in own.items():
            if isinstance(one, types.FunctionType) and name not in _MAKERS:
                changes = bytecode.instructions(one.__code__).changes
                self._writers += [(kind, name, change.name) for change in changes if change.kind == "first"]
        for name in sorted(own):
            if not isinstance(own[name], types.MemberDescriptorType | types.GetSetDescriptorType):
                # What a method calls is called if that is; what is called when an instance is made is over.
                kept, self._called = self._called, set()
                with self.within(f"{name} of the class {kind.__name__}"):
                    parts += [name, self.of(own[name])]
                if name not in _MAKERS:
                    self._methods.setdefault(name, set()).update(self._called)
                self._called = kept
        return hashed(b"class", *parts)


def _is_private(slot: str) -> bool:
    return slot.startswith("__") and not slot.endswith("__")


def _is_local(names: Mapping[str, Any]) -> bool:
    """Say whether code that has these globals is the user's."""
    return is_local_module(str(names.get("__name__", "__main__")))


def _package(names: Mapping[str, Any]) -> str:
    package = names.get("__package__")
    if package is None:
        name = str(names.get("__name__", ""))
        package = name if "__path__" in names else name.rpartition(".")[0]
    return str(package)
