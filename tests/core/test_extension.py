"""Two extensions that claim one name or one place are an error that names both."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class OfTheFront(AddedOptions):
    title = "Of the front"
    json: bool = option(False, "", "Help.")


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


@pytest.mark.parametrize(
    ("kinds", "flag"),
    [((One, SameName), "shade"), ((One, SameFlag), "--shade"), ((OfTheCore,), "margin")],
)
def test_two_options_of_one_name_or_flag(monkeypatch, kinds, flag):
    installed(monkeypatch, *(extension(options=kind) for kind in kinds))
    with pytest.raises(UsageError, match=rf"{kinds[-1].__module__} both have the option {flag}"):
        options.table.__wrapped__()


def test_an_option_of_the_name_of_one_of_all_commands(monkeypatch):
    installed(monkeypatch, extension(options=OfTheFront))
    with pytest.raises(UsageError, match=r"cli.running and test_extension both .* json"):
        parameters.tables.__wrapped__()


@pytest.mark.parametrize("name", ["paint", "merge"])
def test_two_commands_of_one_name(monkeypatch, name):
    specs = [CommandSpec(name, f"{module}.paint", "Other", ()) for module in ("a", "b")]
    installed(monkeypatch, *(extension(commands=(spec,)) for spec in specs))
    with pytest.raises(UsageError, match=f"a.paint both have the command {name}|b.paint both"):
        options.commands.__wrapped__()


@pytest.mark.parametrize(("kinds", "key"), [((Shades, Shades), "shade"), ((Verdicts,), "verdict")])
def test_two_parts_of_an_audit_with_one_key(monkeypatch, kinds, key):
    parts = [type("Part", (AuditPart,), {"record": kind}) for kind in kinds]
    of = [extension(audit_parts=lambda self, part=part: [part()]) for part in parts]
    installed(monkeypatch, *of)
    with pytest.raises(UsageError, match=rf"test_extension both have the key {key}"):
        records.added_records()


def test_two_functions_of_one_name():
    with pytest.raises(UsageError, match=r"a\.paint and b\.paint both have the function paint"):
        wiring.by_name("the function", [("paint", f"{one}.paint", one) for one in "ab"])


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

    def open(self, reference, options, layout): ...


class OtherSuite(Suite):
    __module__ = "other"


def test_two_sources_of_one_task(monkeypatch):
    installed(monkeypatch, *(extension(task_sources=(one(),)) for one in (Suite, OtherSuite)))
    with pytest.raises(UsageError, match=r"test_extension and other each read .*suite:small"):
        task_source_of("suite:small")
    assert task_source_of("questions.jsonl") is None


def test_two_functions_in_place_of_a_command(monkeypatch):
    others = [extension(override=lambda self, command, options: cli.command_of)] * 2
    installed(monkeypatch, *others)
    with pytest.raises(UsageError, match="each change merge"):
        override_of("merge", Options())
