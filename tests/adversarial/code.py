"""Files of others that would be taken for code, or for the user's own command line."""

import json
from pathlib import Path

import making

from adversarial import case, outcome, timed


@case("config-of-a-report")
def _(place: Path) -> str:
    """A report whose command line replaces a directory of the user."""
    making.saved_pair(place)
    outcome("merge", place / "a", place / "b", "-o", place / "mine")
    before = (place / "mine" / "README.md").read_text()
    words = ["merge", place / "a", place / "b", "--weights", "1,1"]
    words = list(map(str, [*words, "-o", place / "mine", "--overwrite"]))
    (place / "r.json").write_text(json.dumps({"provenance": {"arguments": words}}))
    found = outcome("merge", "--config", place / "r.json")
    same = (place / "mine" / "README.md").read_text() == before
    return found if same else "the directory is replaced"


@case("config-of-trust")
def _(place: Path) -> str:
    making.saved_pair(place)
    (place / "c.yaml").write_text("trust-remote-code: true\n")
    return outcome("inspect", place / "a", place / "b", "--config", place / "c.yaml")


# YAML of tasks is code.
YAML = """task: t
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{{{{answer}}}}"
"""
CODE = "{{{{ cycler.__init__.__globals__.os.mkdir('{marker}') }}}}"
LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


def _folder(place: Path, text: str) -> str:
    """The outcome of `task check` for a folder with one task."""
    (place / "t").mkdir()
    (place / "d.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    yaml = YAML.format(data=place / "d.jsonl", kind="generate_until", text=text)
    (place / "t" / "t.yaml").write_text(yaml)
    return outcome("task", "check", f"lm_eval:t@{place / 't'}")


@case("harness-code")
def _(place: Path) -> str:
    found = _folder(place, CODE.format(marker=place / "ran").replace("{{{{", "{{"))
    return "its code ran" if (place / "ran").exists() else found


@case("harness-loop")
def _(place: Path) -> str:
    return timed(lambda: _folder(place, LOOP))
