"""Two extensions that claim one name or one place are a warning or an error that names both."""

import ast
import re
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from loraprobe import cli, options, records, wiring
from loraprobe.cli import parameters
from loraprobe.errors import UsageError
from loraprobe.extension import (
    AuditPart,
    Backend,
    Extension,
    Pool,
    TaskSource,
    backend_of,
    override_of,
    task_source_of,
)
from loraprobe.options import AddedOptions, CommandSpec, Options, option
from loraprobe.pipeline.inputs import check_names
from loraprobe.wiring import option_names


@dataclass(frozen=True)
class One(AddedOptions):
    title = "One"
    shade: str = option("", "TEXT", "Help.")


@dataclass(frozen=True)
class SameName(AddedOptions):
    title = "Same name"
    shade: int = option(1, "N", "Help.", "--other")


@dataclass(frozen=True)
class SameFlag(AddedOptions):
    title = "Same flag"
    tint: str = option("", "TEXT", "Help.", "--shade")


@dataclass(frozen=True)
class OfTheCore(AddedOptions):
    title = "Of the core"
    margin: float = option(0.0, "X", "Help.", "--other")


def named(name, flag=None):
    """The class of an option of a name or flag."""
    field = option("", "TEXT", "Help.", *filter(None, [flag]))
    return make_dataclass("Named", [(name, str, field)], bases=(AddedOptions,), frozen=True)


@dataclass(frozen=True)
class Shades:
    shade: str = ""


@dataclass(frozen=True)
class Verdicts:
    verdict: str = ""


def extension(**own):
    return type("Another", (Extension,), own)()


def installed(monkeypatch, *added):
    every = (*wiring.extensions(), *added)
    for module in (wiring, options, records):
        monkeypatch.setattr(module, "extensions", lambda: every)


def paint(module):
    return CommandSpec("paint", f"{module}.paint", "Other", ())


# What is taken -> the extensions of other packages of which the last is left out.
TAKEN = {
    "the option shade": ({"options": One}, {"options": SameName}),
    "the flag --shade": ({"options": One}, {"options": SameFlag}),
    "the option margin": ({"options": OfTheCore},),
    **{f"the option {name}": ({"options": named(name)},) for name in (
        "json", "target", "base", "task", "probe", "config", "debug", "refs", "help", "check")},
    **{f"the flag {flag}": ({"options": named("tint", flag=flag)},) for flag in (
        "--json", "--output", "-o", "-q", "--quiet", "--task", "--method", "--help", "--debug")},
    "a.paint and b.paint both have the command paint": (
        {"commands": (paint("a"),)}, {"commands": (paint("b"),)},
    ),
    "the command merge": ({"commands": (CommandSpec("merge", "a.merge", "Other", ()),)},),
    "a.f and b.f both have the function f": (
        {"functions": {"f": "a.f"}}, {"functions": {"f": "b.f"}},
    ),
    "the function inspect": ({"functions": {"inspect": "a.inspect"}},),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
def test_an_extension_that_adds_what_is_there_is_left_out_with_a_warning(monkeypatch, what):
    added = [extension(**own) for own in TAKEN[what]]
    points = [
        SimpleNamespace(name="x", dist=None, value="x", load=lambda one=one: one) for one in added
    ]
    monkeypatch.setattr(wiring, "entry_points", lambda group: points)
    with pytest.warns(UserWarning, match=what):
        found = wiring.extensions.__wrapped__()
    assert found[len(wiring.EXTENSIONS) :] == (*added[:-1],)


def test_the_core_has_claimed_every_word_of_its_commands_but_those_of_extensions():
    """So an extension that adds one is left out: it would keep every command from running."""
    added = {one for of in wiring.extensions() if of.options for one in option_names(of.options)}
    groups = [cli.command_of(name) for name in {spec.name.split()[0] for spec in options.CORE}]
    commands = [one for group in groups for one in getattr(group, "commands", {"": group}).values()]
    taken = [parameter for one in commands for parameter in one.params]
    found = {f"the option {name}" for name in (*parameters.tables(), *(p.name for p in taken))}
    flags = [flag for p in taken for flag in p.opts if flag.startswith("-")]
    found |= {f"the flag {flag}" for flag in flags if flags.count(flag) > 1}
    assert found - added <= {*wiring.OF_CORE} and {"the option json", "the flag -o"} <= found


@pytest.mark.parametrize(("kinds", "key"), [((Shades, Shades), "shade"), ((Verdicts,), "verdict")])
def test_two_parts_of_an_audit_with_one_key(monkeypatch, kinds, key):
    parts = [type("Part", (AuditPart,), {"record": kind}) for kind in kinds]
    of = [extension(audit_parts=lambda self, part=part: [part()]) for part in parts]
    installed(monkeypatch, *of)
    with pytest.raises(UsageError, match=rf"test_extension both have the key {key}"):
        records.added_records()


def test_extensions_import_no_private_name_or_module_of_the_core():
    """What they need is public in its room: somebody else's extension may need it too."""
    place, found = Path(wiring.__file__).parent / "extensions", list[str]()
    for file in sorted(place.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loraprobe"):
                words = (*str(node.module).split("."), *(one.name for one in node.names))
                private = (word for word in words if re.match("_(?!_|version$)", word))
                found += [f"{file.name}: {word}" for word in private]
    assert not found


class Always(Backend):
    def chosen(self, options):
        return True


class Paint(Always):
    flag = "--paint"


class Workers(Always, Pool):
    flag = "--workers"

    def open(self, session): ...


@pytest.mark.parametrize("others", [(Paint(), Paint()), (Paint(), Workers())])
def test_two_backends(monkeypatch, others):
    installed(monkeypatch, *(extension(backends=(one,)) for one in others))
    first, second = (one.flag for one in others)
    for check in backend_of, check_names:
        with pytest.raises(UsageError, match=f"{first} and {second}"):
            check(Options())


class Suite(TaskSource):
    def claims(self, reference):
        return reference.startswith("suite:")

    def open(self, reference, options): ...


class OtherSuite(Suite):
    __module__ = "other"


def test_two_sources_of_one_task(monkeypatch):
    installed(monkeypatch, *(extension(task_sources=(one(),)) for one in (Suite, OtherSuite)))
    with pytest.raises(UsageError, match=r"test_extension and other each read .*suite:small"):
        task_source_of("suite:small", Options())
    assert task_source_of("questions.jsonl", Options()) is None


def test_two_functions_in_place_of_a_command(monkeypatch):
    others = [extension(override=lambda self, command, options: cli.command_of)] * 2
    installed(monkeypatch, *others)
    with pytest.raises(UsageError, match="each change merge"):
        override_of("merge", Options())
