"""What each server does with a PEFT file: the rules of `inspect --serve`, as data.

Every rule was read in the source of the version that stands with its server; docs/serving.md is
generated from this table. Servers change: to check a newer version, read the files in `source`,
then change the version, the date, and the rules that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# refuses: the file is not loaded. misreads: it is loaded as another function, without an error.
# may refuse: it depends on the base model.
Effect = Literal["refuses", "misreads", "may refuse"]


@dataclass(frozen=True)
class Server:
    """A server, the version whose source was read, and when.

    `ranks` are the values of its limit on the rank, the default first; () for none. `command`
    starts it with an adapter; {base}, {name}, {place} and {limit} are filled in.
    """

    version: str
    checked: str
    source: str
    command: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Feature:
    """What a file may have that a server does not read: its name in a sentence, and its cure.

    `consequence` says what follows where a server reads the file without it.
    """

    what: str
    consequence: str
    cure: str


@dataclass(frozen=True)
class Rule:
    """What servers do with a feature. `fixed` is the first version that reads it, "" for none."""

    feature: str
    servers: tuple[str, ...]
    effect: Effect
    fixed: str = ""


SERVERS: Mapping[str, Server] = {
    "vllm": Server(
        "0.33.0",
        "2026-11-26",
        "https://github.com/vllm-project/vllm/tree/v0.33.0/vllm/lora "
        "(peft_helper.py, lora_model.py, utils.py)",
        "vllm serve {base} --enable-lora{limit} --lora-modules {name}={place}",
        (16, 1, 8, 32, 64, 128, 256, 320, 512),
    ),
    "sglang": Server(
        "0.5.23",
        "2026-11-26",
        "https://github.com/sgl-project/sglang/tree/v0.5.23/python/sglang/srt/lora "
        "(lora.py, lora_manager.py, mem_pool.py, utils.py)",
        "python -m sglang.launch_server --model-path {base} --enable-lora "
        "--lora-paths {name}={place}",
    ),
    "llama.cpp": Server(
        "0c1e57098",
        "2026-11-26",
        "https://github.com/ggml-org/llama.cpp/tree/0c1e57098 "
        "(convert_lora_to_gguf.py, src/llama-adapter.cpp, src/llama-adapter.h)",
        "python convert_lora_to_gguf.py {place} --outfile {name}.gguf && "
        "llama-server -m BASE.gguf --lora {name}.gguf",
    ),
    "ollama": Server(
        "(GGUF)",
        "2026-11-26",
        "https://github.com/ollama/ollama/tree/main/convert (a GGUF file goes to llama.cpp's code)",
        "printf 'FROM ./BASE.gguf\\nADAPTER ./{name}.gguf\\n' > Modelfile && "
        "ollama create {name} -f Modelfile",
    ),
    "peft": Server(
        "0.21.2",
        "2026-11-26",
        "https://github.com/huggingface/peft/tree/v0.21.2/src/peft "
        "(utils/save_and_load.py, tuners/lora)",
        "",
    ),
}

CONVERT = "loraprobe convert {place} -o OUT"
WHOLE = "merge it into its base with peft (merge_and_unload) and serve the whole model"
GGUF = ("llama.cpp", "ollama")

FEATURES: Mapping[str, Feature] = {
    "rank": Feature("rank {rank}, beyond all its limits", "", "merge it at a smaller --rank"),
    "rank-default": Feature(
        "rank {rank}", ": its limit is 16 unless it is raised", "raise it with --max-lora-rank"
    ),
    "rank-pattern": Feature("ranks that differ by module (rank_pattern)", "", CONVERT),
    "scaling-pattern": Feature(
        "scalings that differ by module (rank_pattern, alpha_pattern)",
        "every module is scaled by lora_alpha / r",
        CONVERT,
    ),
    "alpha-pattern": Feature(
        "values of lora_alpha that differ by module (alpha_pattern)",
        "every module gets the one lora_alpha",
        CONVERT,
    ),
    "rslora": Feature(
        "rsLoRA", "lora_alpha is divided by the rank, not by its root: too weak", CONVERT
    ),
    "dora": Feature("DoRA", "the magnitudes are left out", WHOLE),
    "bias": Feature("trained biases", "they are left out", WHOLE),
    "lora-bias": Feature("biases of B (lora_bias)", "they are left out", WHOLE),
    "modules-to-save": Feature(
        "whole trained modules (modules_to_save)", "the base's modules stay", WHOLE
    ),
    "token-delta": Feature(
        "trained token rows (trainable_token_indices)", "the base's embedding stays", WHOLE
    ),
    "target-parameter": Feature("factors of expert parameters (target_parameters)", "", WHOLE),
    "convolution": Feature("factors of convolutions", "they are left out", WHOLE),
    "embedding": Feature("factors of the token embedding", "", WHOLE),
    "output-head": Feature("factors of the output head", "", WHOLE),
    "init-changed-base": Feature(
        "an initialisation that changed the base (PiSSA, OLoRA, CorDA, LoftQ)",
        "it is added to a base that it does not fit",
        "save it again with peft's path_initial_model_for_weight_conversion",
    ),
    "prefix": Feature(
        "keys with the prefix base_model.model. twice, or without it", "nothing is loaded", CONVERT
    ),
    "adapter-name": Feature(
        "keys that hold the adapter's name (lora_A.default.weight)", "nothing is loaded", CONVERT
    ),
    "untargeted": Feature(
        "weights of modules that target_modules does not name",
        "they are left out",
        "name these modules in target_modules, or remove their weights",
    ),
    "target-expression": Feature("target_modules as a regular expression", "", CONVERT),
    "no-value": Feature(
        "an attention layer with q_proj and without v_proj",
        "",
        "serve it with vllm, or " + WHOLE,
    ),
    "no-query": Feature(
        "an attention layer with k_proj or v_proj and without q_proj",
        "they are left out",
        "serve it with vllm, or " + WHOLE,
    ),
}

RULES: tuple[Rule, ...] = (
    Rule("scaling-pattern", ("vllm",), "misreads", "0.32.0"),
    Rule("init-changed-base", ("vllm",), "refuses"),
    Rule("dora", ("vllm",), "refuses"),
    Rule("bias", ("vllm",), "refuses"),
    Rule("lora-bias", ("vllm",), "refuses"),
    Rule("modules-to-save", ("vllm",), "refuses"),
    Rule("token-delta", ("vllm",), "refuses"),
    Rule("convolution", ("vllm",), "refuses"),
    Rule("adapter-name", ("vllm",), "refuses"),
    Rule("target-parameter", ("vllm",), "may refuse"),
    Rule("embedding", ("vllm",), "may refuse"),
    Rule("output-head", ("vllm",), "may refuse"),
    Rule("rank-pattern", ("sglang",), "refuses"),
    Rule("scaling-pattern", ("sglang",), "misreads"),
    Rule("rslora", ("sglang",), "misreads"),
    Rule("init-changed-base", ("sglang",), "misreads"),
    Rule("dora", ("sglang",), "refuses"),
    Rule("bias", ("sglang",), "refuses"),
    Rule("lora-bias", ("sglang",), "refuses"),
    Rule("modules-to-save", ("sglang",), "misreads"),
    Rule("token-delta", ("sglang",), "misreads"),
    Rule("convolution", ("sglang",), "misreads"),
    Rule("target-parameter", ("sglang",), "may refuse"),
    Rule("target-expression", ("sglang",), "refuses"),
    Rule("no-value", ("sglang",), "refuses"),
    Rule("no-query", ("sglang",), "misreads"),
    Rule("alpha-pattern", GGUF, "misreads"),
    Rule("rslora", GGUF, "misreads"),
    Rule("init-changed-base", GGUF, "misreads"),
    Rule("dora", GGUF, "refuses"),
    Rule("bias", GGUF, "refuses"),
    Rule("lora-bias", GGUF, "refuses"),
    Rule("modules-to-save", GGUF, "refuses"),
    Rule("token-delta", GGUF, "refuses"),
    Rule("convolution", GGUF, "refuses"),
    Rule("target-parameter", GGUF, "refuses"),
    Rule("adapter-name", GGUF, "refuses"),
    Rule("output-head", GGUF, "may refuse"),
    Rule("prefix", ("peft",), "misreads"),
    Rule("untargeted", ("peft",), "misreads"),
    Rule("init-changed-base", ("peft",), "may refuse"),
)
