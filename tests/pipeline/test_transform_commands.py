"""`--balance`, `--subtract` and negative weights on the command line, in cards and in audits."""

import json

import jsonschema
import making
import pytest
import torch
from test_transforms import close, dense, some

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.report.documents import json_schema


def test_merge_command_and_card_state_the_transformations(tmp_path):
    for name, seed, scaling in (("a", 1, 0.5), ("b", 2, 4.0), ("g", 3, 1.0)):
        some(name, seed, scaling=scaling, dtype=torch.bfloat16).save(tmp_path / name)
    a, b, g = (str(tmp_path / name) for name in "abg")
    options = ["--balance", "norm", "--subtract", g, "--json"]
    result = making.call("merge", a, b, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, json_schema())
    steps = document["transformations"]
    assert [step["subtracted"] for step in steps] == [["g"], ["g"]]
    merged, sources = read_adapter(tmp_path / "out"), [read_adapter(p) for p in (a, b, g)]
    assert merged.dtype is torch.bfloat16  # the sources' widest
    path = "model.layers.1.mlp.down_proj"
    wanted = sum(
        (dense(source, path) - dense(sources[2], path)) * step["factor"] / 2
        for source, step in zip(sources[:2], steps, strict=True)
    )
    assert close(dense(merged, path), wanted, 0.01)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{steps[1]['factor']:.4g}" in card and "subtracted" in card
    api = loraprobe.merge([a, b], balance="norm", subtract=[g])
    assert close(dense(api.adapter, path), wanted, 0.01) and "subtracted" in api.card


@pytest.mark.parametrize(
    "form", [["--weights", "1,-0.5"], ["--weights", "-0.5,1"], ["--weights=-1,1"]]
)
def test_negative_weights_negate_and_the_card_states_it(tmp_path, form):
    a, b = some("a", 1), some("b", 2)
    for adapter in (a, b):
        adapter.save(tmp_path / adapter.name)
    out = tmp_path / "out"
    call = ["merge", tmp_path / "a", tmp_path / "b", "--method", "task-arithmetic"]
    result = making.call(*call, *form, "-o", out)
    assert result.exit_code == 0, result.output
    w = [float(x) for x in form[-1].rpartition("=")[2].split(",")]
    path = "model.layers.0.self_attn.k_proj"
    found = dense(read_adapter(out), path)
    assert close(found, w[0] * dense(a, path) + w[1] * dense(b, path))
    assert "negated" in (out / "README.md").read_text()


def test_merge_and_eval_leaves_single_adapters_as_they_are():
    """On the shipped world: the same rows for base and singles, others for merges."""
    options = "--limit 12 --json --system sum --metric answer_loss --margin 0.05".split()
    call = ["merge-and-eval", *making.shipped("keep-both"), *options]
    rows = []
    for extra in ([], ["--balance", "norm"]):
        result = making.call(*call, *extra)
        document = json.loads(result.stdout)
        jsonschema.validate(document, json_schema())
        rows.append({(r["system"], r["task"]): r["value"] for r in document["evaluation"]})
    assert document["verdict"]["probability"] is None
    names = {step["adapter"] for step in document["transformations"]}
    assert names == {"last", "count"}
    for key, value in rows[0].items():
        assert (rows[1][key] == value) == (key[0] not in ("sum", "random-partner")), key
