"""The codes of all issues with their meaning. Scripts and `--allow` use them, so they are stable.

The codes of extras are the kinds of `Extra` with dashes.
"""

from __future__ import annotations

from loraprobe.compatibility.servers import FEATURES

# Of two adapters with such an error one has to be exchanged for another adapter of the base.
UNLIKE = ("task-type-mismatch", "architecture-mismatch", "shapes-differ", "kinds-differ")

CODES: dict[str, str] = {
    # On reading an adapter's files
    "doubled-prefix": "keys that peft loads without any effect",
    "several-adapters": "two tensors for one factor",
    "unpaired-factor": "A without B or B without A",
    "shape-mismatch": "factors that do not multiply, or are empty",
    "not-floating": "factors of integers or an unknown type",
    "rank-contradicts-config": "a rank that is not the config's, so that the scale is unknown",
    "missing-alpha": "no lora_alpha in the config",
    "missing-tensors": "the file lacks tensors that the config asks for",
    "unknown-tensors": "keys that are not those of a PEFT LoRA file",
    "unknown-config": "config keys that may change the mathematics",
    "no-modules": "nothing that can be used",
    "weights-disagree": "adapter_model.safetensors and adapter_model.bin are not the same",
    "targets-without-weights": "targets of the config for which the file holds nothing",
    "weights-untargeted": "weights that peft ignores because the config does not name them",
    "targets-unreadable": "an expression of the targets that re cannot compile or match in time",
    "tensors-unused": "tensors that peft ignores because the config does not ask for them",
    "init-changed-base": "the initialisation changed the base weights (PiSSA, OLoRA, CorDA ...)",
    "init-unknown": "an initialisation that is not known and may have changed the base weights",
    "trainer-config": "config keys of a trainer, which do not change the function",
    "layers-uneven": "a layer lacks a module that other layers have",
    "shapes-uneven": "a module of different shapes in different layers",
    "unprefixed-keys": "keys as other tools write them, which peft would ignore",
    "unknown-config-empty": "unknown config keys with an empty value",
    # The base model
    "base-mismatch": "the base models have different names",
    "base-unclear": "the names of the base models do not tell whether they are one model",
    "base-unknown": "an adapter does not say which base model it was trained on",
    "base-is-a-path": "an adapter names its base by a path of the machine it was trained on",
    "revision-mismatch": "the same base model, at different revisions",
    "quantised-base": "the base is a quantised copy, or its weights are stored quantised",
    # Task type and vocabulary
    "task-type-mismatch": "adapters of different task types",
    "task-type-unsupported": "not an adapter of a causal language model",
    "tokenizer-mismatch": "the tokenizers saved with the adapters differ in size",
    "tokenizer-unreadable": "a tokenizer saved with an adapter cannot be read",
    "vocabulary-mismatch": "embedding or head of different vocabulary sizes",
    # Modules
    "parameters-differ": "the adapters target different parameters of one module, or other experts",
    "shapes-differ": "a module has different shapes",
    "kinds-differ": "a module is of different kinds of layer",
    "architecture-mismatch": "the module paths belong to different architectures",
    "prefix-mismatch": "the module paths differ by a prefix",
    "fused-targets": "one adapter targets fused projections, the other the single ones",
    "fused-translated": "fused projections were split into single ones, or these joined; exact",
    "depth-differs": "the adapters reach different last layers",
    "targets-disjoint": "the adapters touch no module in common",
    "targets-differ": "some modules are touched by some adapters only",
    "ranks-differ": "the adapters have different ranks",
    "rslora": "an adapter scales by alpha/sqrt(r), not alpha/r",
    "rank-large": "a merge that loses nothing has a rank that servers may not load",
    "module-not-in-base": "the base has no such module",
    "tied-embeddings": "an adapter changes one of two layers that share their weight",
    # Tensors other than factors
    "dora-magnitude": "DoRA magnitudes",
    "modules-to-save": "whole modules (modules_to_save)",
    "bias": "trained biases of base layers",
    "lora-bias": "biases of B",
    "token-delta": "trained token rows (trainable_token_indices)",
    "unclear-tokens": "trained token rows without their tokens",
    "target-parameter": "factors of MoE parameters (target_parameters)",
    "convolution": "factors of convolutions",
    "base-copy": "a copy of the base's embedding or head",
    "base-weight": "a weight that peft writes over that of the base",
    "unknown": "tensors of an unknown kind",
    # Inside the factors
    "not-finite": "NaN or infinities",
    "no-effect": "all deltas are zero",
    "norm-extreme": "a delta far larger than that of any sound training",
    "modules-without-effect": "some modules' deltas are zero",
    "duplicate": "two adapters are the same update",
    # In a library
    "reference": "a reference is neither a directory nor a repository of the Hub",
    "hub": "the Hub does not give the adapter",
    "adapter": "the files cannot be read",
    "unsupported-adapter": "an adapter whose mathematics is not that of LoRA",
    "scaled-copy": "an adapter is another one, scaled",
    "norm-outlier": "a norm far from those of the other adapters",
    # In a merge
    "weights-ignored": "the method has weights of its own, so those given were not used",
    "compression-lost": "the rank lost more than a tenth of the merged delta",
    # In the model cards
    "licence-unknown": "a source declares no licence",
    "licence-noncommercial": "a source forbids commercial use",
    "licence-no-derivatives": "a source forbids sharing what is derived from it",
    "licence-conflict": "a source asks for its own licence, and others have another",
    "licence-terms": "a source comes with terms of its own",
    "licence-gated": "a download of a source or the base requires acceptance of its terms",
    # In what servers read (--serve)
    "serve-ok": "a server reads the file as it is",
    **{f"serve-{name}": f"a server does not read this: {f.what}" for name, f in FEATURES.items()},
}
