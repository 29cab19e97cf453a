"""A PEFT directory -> Adapter, with every tensor of its file accounted for.

Findings are issues of the adapter, with these codes (errors stop a merge unless allowed by name):

error    doubled-prefix           keys that peft loads without any effect
error    several-adapters         two tensors for one factor
error    unpaired-factor          A without B or B without A
error    shape-mismatch           factors that do not multiply, or are empty
error    not-floating             factors of integers or an unknown type
error    rank-contradicts-config  a rank that is not the config's, so that the scale is unknown
error    missing-alpha            no lora_alpha in the config
error    missing-tensors          the config promises what the file lacks
error    unknown-tensors          keys that fit nothing
error    unknown-config           config keys that may change the mathematics
error    no-modules               nothing that can be used
error    init-changed-base        an initialisation that changed the base (PiSSA, OLoRA ...)
error    init-unknown             an initialisation that peft does not know
error    targets-unreadable       an expression that re does not compile, or without end
error    weights-disagree         adapter_model.safetensors and adapter_model.bin hold two adapters
warning  targets-without-weights  targets of the config for which the file holds nothing
warning  weights-untargeted       weights that the config does not name and peft leaves out
warning  tensors-unused           magnitudes or biases that the config does not ask for
warning  layers-uneven            a module that other layers have beside the same neighbours
warning  unprefixed-keys          keys as other tools write them, which peft would ignore
note     shapes-uneven            a module of different shapes in different layers
note     trainer-config           config keys of a trainer that do not change the function
note     unknown-config-empty     unknown config keys that say nothing
"""

from __future__ import annotations

from pathlib import Path

from loraprobe.adapters.completeness import completeness
from loraprobe.adapters.config import CONFIG, read_config
from loraprobe.adapters.extras import beside
from loraprobe.adapters.sorting import KeySorting
from loraprobe.adapters.tensors import (
    PICKLE,
    SAFETENSORS,
    disagreement,
    open_tensors,
)
from loraprobe.adapters.types import Adapter, Modules, Source
from loraprobe.errors import AdapterError


def read_adapter(
    path: str | Path, name: str | None = None, source: Source | None = None
) -> Adapter:
    """Reads a PEFT directory; factors stay in their file until asked for.

    Raises AdapterError if the files cannot be read and UnsupportedAdapter if the configuration
    is of another kind than LoRA. What is odd but readable is in the adapter's `issues`.
    """
    directory = find_directory(Path(path))
    name = name or directory.resolve().name
    config = read_config(directory)
    file = open_tensors(directory)
    reading = KeySorting(name, config, file)
    reading.sort_keys()
    infos = reading.pair_factors()
    reading.check_config()
    reading.issues += completeness(name, infos, config.raw, reading.extras)
    if what := disagreement(directory):
        reading.issue(
            "error",
            "weights-disagree",
            f"{directory} holds {SAFETENSORS} and {PICKLE}, which are not the same "
            f"adapter: {what}.",
            "Delete the one that is not meant.",
        )
    if not infos:
        reading.issue(
            "error",
            "no-modules",
            "The file holds no LoRA factors that can be used.",
            "Check that this is the adapter that was trained.",
        )
    return Adapter(
        name=name,
        source=source or Source(reference=str(path), path=directory),
        base_model=config.raw.get("base_model_name_or_path") or None,
        modules=Modules(infos, reading.reader(infos)),
        extras=tuple(reading.extras),
        issues=tuple(reading.issues),
        config=dict(config.raw),
        weights_file=file.path,
        **beside(file, reading.extras)._asdict(),
    )


def find_directory(path: Path) -> Path:
    """The directory itself, or its only sub-folder with an adapter (peft's named adapters)."""
    if (path / CONFIG).is_file() or not path.is_dir():
        return path
    inner = sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
    if len(inner) == 1:
        return inner[0]
    if inner:
        names = ", ".join(p.name for p in inner)
        raise AdapterError(f"{path} holds several adapters ({names}); name one of them.")
    return path
