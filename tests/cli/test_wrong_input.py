"""The Hub's refusals on the command line: one sentence, exit 2, nothing written."""

from __future__ import annotations

import making
import pytest
from test_cli import call, one_sentence

from loraprobe.errors import UsageError
from loraprobe.options import read_auto_or_count as auto_or_count


def gated(hub):
    hub.fail["GET /api/"] = hub.fail["HEAD /acme"] = (403, {"X-Error-Code": "GatedRepo"})


def missing(hub):
    hub.fail["GET /api/"] = hub.fail["HEAD /acme"] = (404, {"X-Error-Code": "RepoNotFound"})


def wrong_revision(hub):
    hub.fail["GET /api/"] = hub.fail["HEAD /acme"] = (404, {"X-Error-Code": "RevisionNotFound"})


def limited(hub):
    hub.fail["GET /api/"] = hub.fail["HEAD /acme"] = (429, {})


def cut_short(hub):
    hub.spoil["adapter_model.safetensors"] = "truncate"


def altered(hub):
    hub.spoil["adapter_model.safetensors"] = "flip"


def without_weights(hub):
    del hub.files["adapter_model.safetensors"]


CASES = {
    gated: "is gated",
    missing: "no repository acme/math",
    wrong_revision: "no revision 'v7'",
    limited: "rate of requests",
    cut_short: "broke off",
    altered: "hash",
    without_weights: "no weights",
}


@pytest.mark.parametrize("command", ["inspect", "merge", "merge-and-eval"])
@pytest.mark.parametrize("spoil", CASES, ids=lambda case: case.__name__)
def test_a_refusal_of_the_hub(hub, tmp_path, caplog, spoil, command):
    spoil(hub)
    making.random_adapter("local", seed=3).save(tmp_path / "local")
    task = tmp_path / "task.jsonl"
    task.write_text('{"id": "1", "prompt": "Who?", "answer": "Bo"}\n')
    rest = {
        "inspect": (),
        "merge": ("-o", tmp_path / "out"),
        "merge-and-eval": ("-o", tmp_path / "out", "--task", task),
    }[command]
    before = sorted(p.name for p in tmp_path.iterdir())
    said = one_sentence(call(command, tmp_path / "local", "acme/math@v7", *rest))
    assert not caplog.records, "what the Hub's client has to say is in the sentence"
    assert CASES[spoil] in said
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == [
        name for name in before if name != "cache"
    ]


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "\u00b2", "", "1" + "0" * 400, "9" * 5000])
def test_a_count_is_a_count_or_one_sentence(text):
    with pytest.raises(UsageError, match="takes auto or a positive whole number"):
        auto_or_count(text, "--rank")
    assert auto_or_count("12", "--rank") == 12
