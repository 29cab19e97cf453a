"""What Python shows of loraprobe's objects: short, whatever their names are."""

from dataclasses import replace

import making
import pytest

import loraprobe
from loraprobe.report.answer import answer, unplaced
from loraprobe.report.markdown import markdown
from loraprobe.report.sections import heading, sections

LONG = "a-name-" + "x" * 400


def shown(thing: object) -> str:
    told = repr(thing)
    whole = " ".join(told.replace("\\", " ").split())
    assert len(told.splitlines()) <= 15 and len(told) <= 1500
    return whole


@pytest.mark.parametrize("names", [("a", "b"), (LONG, "b", *map(str, range(30)))])
def test_adapters_and_what_is_made_of_them(names):
    adapters = [making.random_adapter(name, seed=seed) for seed, name in enumerate(names)]
    told = shown(adapters[0])
    assert names[0][:50] in told and "14 modules" in told and "rank 4" in told
    for made in (
        loraprobe.merge(adapters),
        loraprobe.compose(adapters),
        loraprobe.compose(adapters).composition,
    ):
        assert names[0][:50] in shown(made)
    assert "weights" in repr(loraprobe.merge(adapters))


def test_the_next_command_of_a_repr_has_the_places_that_were_given(tmp_path, monkeypatch):
    """Below the working directory they stay; of others the record has names, since it may be
    published."""
    making.saved_pair(tmp_path / "my runs")
    monkeypatch.chdir(tmp_path)
    for given in (
        ["my runs/a", "my runs/b"],
        list(map(loraprobe.load, ("my runs/a", "my runs/b"))),
    ):
        audit = loraprobe.inspect(given)
        command = "loraprobe inspect 'my runs/a' 'my runs/b'"
        assert str(tmp_path) not in audit.to_json()
        assert str(audit.verdict.next).startswith(command) and command in shown(audit)
        assert command in markdown(heading(audit), sections(audit))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place in ("..", tmp_path):
        audit = loraprobe.inspect([f"{place}/my runs/a", f"{place}/my runs/b"])
        assert "my runs" not in audit.to_json() and "inspect a b" in str(audit.verdict.next)
        assert f"loraprobe inspect '{place}/my runs/a'" in shown(audit)
    assert unplaced(audit)
    pinned = [replace(row, commit="c" * 40) for row in audit.adapters]
    assert not unplaced(replace(audit, adapters=tuple(pinned)))


@pytest.mark.parametrize(
    ("base", "named", "command"),
    [
        ("/somewhere/llama", None, "inspect ./a OTHER"),
        ("owner/llama", None, "find owner/llama"),
        ("/cache/models--owner--llama/snapshots/1", None, "find owner/llama"),
        ("llama", "./llama", "inspect ./a OTHER"),
        (None, None, "inspect ./a OTHER"),
    ],
)
def test_nobody_looks_on_the_hub_for_adapters_of_a_local_base(
    base, named, command, tmp_path, monkeypatch
):
    making.write_adapter(tmp_path / "a", {}, base_model_name_or_path=base)
    making.random_adapter("a", base_model=base).save(tmp_path / "a", overwrite=True)
    making.edit(tmp_path / "a" / "adapter_config.json", base_model_name_or_path=base)
    making.tiny_llama().save_pretrained(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    audit = loraprobe.inspect("./a", base=named)
    lines = dict(answer(audit, audit.places).lines)
    assert str(lines.get("next", "")).removeprefix("loraprobe ") == command
    assert ("fill in" in lines) == ("OTHER" in command)
