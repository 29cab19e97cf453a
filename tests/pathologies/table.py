"""Writes the table of docs/pathologies.md: each specimen, and the results of inspect and merge.

    python tests/pathologies/table.py        writes the page anew from what happens

tests/compatibility/test_pathologies.py reads the page and compares it with what happens.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from pathologies.specimens import SPECIMENS, partner

PAGE = Path(__file__).parents[2] / "docs" / "pathologies.md"
SLOW = {"hundred-thousand-modules"}

# A description of each, and the public reports of users.
CASES: dict[str, tuple[str, str]] = {
    "doubled-prefix": (
        "wrapped twice: keys begin with `base_model.model.` twice",
        "peft#1932, vllm#34186",
    ),
    "missing-prefix": ("keys without `base_model.model.`", "peft#2118"),
    "pickle-from-cuda": ("`.bin` saved on a GPU, every storage says `cuda:0`", ""),
    "two-files-that-disagree": ("`.bin` and `.safetensors` hold different tensors", ""),
    "two-files-that-agree": ("`.bin` and `.safetensors` hold the same", ""),
    "lfs-pointer": ("a Git LFS pointer under the name of the weights", ""),
    "state-dict-without-config": ("T5 state dict, no adapter_config.json", ""),
    "base-layer-inside": ("copies of base weights (`base_layer`) among the factors", ""),
    "weights-for-12-of-36-modules": (
        "the config targets three modules, the file holds one of them",
        "",
    ),
    "one-layer-lost": ("a module that is there in every layer but one", ""),
    "weights-beyond-the-targets": ("weights of modules that the config does not target", ""),
    "kohya": ("keys of kohya's sd-scripts under a PEFT config", ""),
    "kohya-without-config": ("the same without a config", ""),
    "diffusers": ("keys of older diffusers under a PEFT config", ""),
    "empty-weights": ("weights file of 0 bytes", ""),
    "empty-config": ("config of 0 bytes", ""),
    "no-tensors": ("a weights file without tensors", ""),
    "truncated": ("a download that broke off", ""),
    "shape-of-2-to-60": ("the header declares shapes of 2^60", ""),
    "expanded-to-2-to-60": ("a pickle that declares 2^60 numbers by strides of zero", ""),
    "base-unnamed": ("base_model_name_or_path is null", ""),
    "base-of-another-system": ("base named by a Windows path", ""),
    "base-in-another-script": ("base named by a path in Chinese script", ""),
    "another-base": ("base of another name", ""),
    "chat-model-of-the-base": ("base's name holds the partner's: `base-chat`", "gpustack#5244"),
    "another-revision": ("the same base at another revision", ""),
    "quantised-base": ("trained on a quantised copy of the base", "peft#2321"),
    "rslora": ("scaled by alpha / sqrt(r)", "peft#3449, peft#3761"),
    "rank-pattern": ("other ranks and alphas in some modules", "peft#3737"),
    "rank-that-servers-refuse": ("rank 96, and more once merged", "vllm#2847"),
    "fused-projections": (
        "`qkv_proj`, where the partner has `q_proj`, `k_proj` and `v_proj`",
        "peft#1705, vllm#4715",
    ),
    "rank-contradicts-config": (
        "rank 4 in the file, 8 in the config",
        "peft#3737, text-generation-webui#5631",
    ),
    "missing-alpha": ("no lora_alpha", "diffusers#5395"),
    "key-of-the-future": ("an unknown config key with a value", ""),
    "empty-key-of-the-future": ("an unknown config key that is null", ""),
    "type-of-the-future": ("an unknown peft_type", ""),
    "config-is-a-list": ("a config that is no object", ""),
    "type-ia3": ("an adapter of peft_type IA3", ""),
    "type-loha": ("an adapter of peft_type LOHA", ""),
    "type-lokr": ("an adapter of peft_type LOKR", ""),
    "type-oft": ("an adapter of peft_type OFT", ""),
    "type-vera": ("an adapter of peft_type VERA", ""),
    "type-prompt-tuning": ("an adapter of peft_type PROMPT_TUNING", ""),
    "type-adalora": ("an adapter of peft_type ADALORA", ""),
    "variant-alora": ("aLoRA", ""),
    "variant-kasa": ("KaSA", "peft#3761"),
    "variant-monteclora": ("MonteCLoRA", ""),
    "variant-bd-lora": ("BD-LoRA", ""),
    "variant-qalora": ("QALoRA", ""),
    "variant-velora": ("VeLoRA", ""),
    "variant-pissa": ("PiSSA, saved without conversion", ""),
    "variant-olora": ("OLoRA, saved without conversion", ""),
    "variant-corda": ("CorDA, saved without conversion", ""),
    "variant-layer-replication": ("layers replicated", ""),
    "dora": ("DoRA", "peft#3761"),
    "dora-without-magnitudes": ("use_dora, but no magnitudes in the file", ""),
    "b-of-several-hundred": ("norm of B 400: a diverged training", ""),
    "b-all-zero": ("B all zero: never trained, or not saved", "peft#2118"),
    "nan": ("NaN", "peft#1001"),
    "infinity": ("infinities", "peft#1001"),
    "subnormal": ("entries below the smallest normal float", ""),
    "integers": ("int8 factors", ""),
    "float8": ("float8 factors", ""),
    "complex-numbers": ("complex factors", ""),
    "head-of-another-size": (
        "modules_to_save holds a head of 3 labels, the partner's has 2",
        "",
    ),
    "head-of-both": ("modules_to_save holds a head, and so does the partner's", ""),
    "vocabulary-resized": (
        "embeddings saved whole, with more tokens than the partner's",
        "peft#1300, LlamaFactory#3125",
    ),
    "lora-bias": ("biases of B", "peft#3761"),
    "identical-to-its-partner": ("a checkpoint that is its final adapter", ""),
    "hundred-thousand-modules": ("100,000 tiny modules", ""),
}
INTRO = """# Adapters from the wild

What people have in their directories, and what loraprobe does with it. Each row is a specimen that
`tests/pathologies/specimens.py` makes with code; the test suite runs `loraprobe inspect` on it and
`loraprobe merge` of it with a sound adapter, and compares both with this page. Either a case is
handled exactly, or it is refused by name with the cure. A finding is given by its code (the reports
say the sentence), a refusal by its sentence; that no specimen declares a licence is left out. What
only the base's weights tell, such as embeddings that are tied to the head (peft#2018, peft#2777),
is found with `--base` and tested in `tests/compatibility/test_kinds.py`. Exit codes: 0 done, 1
incompatible, 2 unusable.

| case | what it is | reported | inspect | exit | merge | exit |
| --- | --- | --- | --- | --- | --- | --- |
"""


def behaviour(case: str, place: Path) -> tuple[str, int, str, int]:
    """Findings and exit code of inspect, and result and exit code of merge, for a specimen."""
    SPECIMENS[case](place / "a")
    partner(place / "b", case)
    seen = _call("inspect", str(place / "a"), "--json")
    if seen.exit_code == 2:
        inspected = f"refused: {_sentence(seen, place)}"
    else:
        inspected = _codes(json.loads(seen.stdout), ("error", "warning", "note")) or "no finding"
    out = place / "out"
    done = _call("merge", str(place / "a"), str(place / "b"), "-o", str(out), "--json")
    assert out.exists() == (done.exit_code == 0)
    if done.exit_code == 0:
        said = _codes(json.loads(done.stdout), ("error", "warning", "note"))
        merged = f"merged: {said}" if said else "merged"
    else:
        codes = re.findall(r"\[([a-z-]+)\]", done.stderr)
        merged = f"refused: {', '.join(f'`{c}`' for c in codes) or _sentence(done, place)}"
        merged = "refused alike" if merged == inspected else merged
    return inspected, seen.exit_code, merged, done.exit_code


def _call(*arguments: str) -> Any:
    from typer.testing import CliRunner

    from loraprobe.cli import app

    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), arguments
    return result


def _codes(document: dict[str, Any], severities: tuple[str, ...]) -> str:
    issues = document["compatibility"]["issues"]
    codes = sorted({issue["code"] for issue in issues if issue["severity"] in severities})
    codes = [code for code in codes if code != "licence-unknown"]  # no specimen has a card
    return ", ".join(f"`{code}`" for code in codes)


def _sentence(result: Any, place: Path) -> str:
    text = " ".join(result.stderr.split()).partition("error: ")[2]
    return text.replace(f"{place}/", "").replace("|", "\\|")


def row(case: str, found: tuple[str, int, str, int]) -> str:
    what, threads = CASES[case]
    return "| " + " | ".join([f"`{case}`", what, threads or "-", *map(str, found)]) + " |"


def main() -> None:
    rows = []
    for case in SPECIMENS:
        with tempfile.TemporaryDirectory() as place:
            rows.append(row(case, behaviour(case, Path(place))))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(INTRO + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
