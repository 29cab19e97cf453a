"""Stacked experts of older peft: read as that peft added them, or refused with both orders."""

from pathlib import Path

import pytest
import torch
from extensions.layouts.older_peft import make
from making import random_adapter
from safetensors.torch import load_file

from loraprobe.adapters import read_adapter
from loraprobe.compatibility import check
from loraprobe.errors import UsageError
from loraprobe.extensions.layouts.orders import with_known_order, with_named_order

OLDER = Path(__file__).with_name("older_peft")


@pytest.mark.parametrize("kind", ["plain", "transposed"])
@pytest.mark.parametrize("version", ["0.17.0", "0.18.1", "0.19.0"])
def test_files_of_older_peft_add_what_that_peft_added(version, kind):
    """The shapes of the model decide for all stacks of a kind; square ones alone stay open."""
    with torch.device("meta"):
        model = make.Model(kind == "transposed")
    wide, square = (OLDER / f"{version}-{kind}-{size}" for size in ("wide", "square"))
    adapter = with_known_order(model, read_adapter(wide))
    codes = [issue.code for issue in adapter.issues]
    is_todays = kind == "transposed" and version < "0.19.0"
    assert codes == ([] if is_todays else ["experts-exchanged"])
    assert adds(adapter, kind, wide)
    # A second look changes nothing.
    assert with_known_order(model, adapter).layout == adapter.layout

    adapter = with_known_order(model, read_adapter(square))
    known = is_todays and version != "0.17.0"  # which does not write its version
    assert [issue.code for issue in adapter.issues] == ([] if known else ["expert-layout"])
    if not known:
        named = {order: with_named_order(model, adapter, order) for order in ("new", "old")}
        right = named["new" if is_todays else "old"]
        assert adds(right, kind, square)
        wrong = named["old" if is_todays else "new"]
        assert not adds(wrong, kind, square)


def adds(adapter, kind: str, place: Path) -> bool:
    """Whether an adapter adds to each parameter of `make.Model` what peft added."""
    wanted = load_file(place / "deltas.safetensors")
    names = [n for n in make.SHAPES if f"experts.{n}" in adapter.config["target_parameters"]]
    found = {}
    for stack, paths in adapter.stacks.items():
        name = names[::-1][stack.count(".base_layer")]  # the last one is the outermost
        delta = torch.stack([adapter.modules[path].delta() for path in paths])
        found[f"experts.{name}"] = delta.mT if kind == "transposed" else delta
    assert found.keys() == wanted.keys()
    return all(torch.allclose(found[name], delta, atol=1e-5) for name, delta in wanted.items())


def test_a_named_order_is_refused_where_something_else_decides(tmp_path):
    with torch.device("meta"):
        model = make.Model(False)
    adapter = read_adapter(OLDER / "0.18.1-plain-wide")
    with pytest.raises(UsageError, match="the order is known"):
        with_named_order(model, adapter, "new")
    with pytest.raises(UsageError, match="none are stacked"):
        with_named_order(None, random_adapter("a", {"q": (4, 4)}), "old")


def test_old_and_new_experts_are_no_shapes_that_differ(tmp_path):
    new = read_adapter(OLDER / "0.18.1-plain-wide")
    with torch.device("meta"):
        new = with_known_order(make.Model(False), new).renamed("new")
    issues = check([read_adapter(OLDER / "0.18.1-plain-wide"), new]).issues
    codes = {issue.code for issue in issues if issue.severity == "error"}
    assert codes == {"expert-layout"}
