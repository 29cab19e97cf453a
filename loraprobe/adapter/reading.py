"""A PEFT directory -> Adapter, with every tensor of its file accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraprobe.adapter.config import CONFIG, Config, read_config
from loraprobe.adapter.keys import PREFIX, classify
from loraprobe.adapter.tensors import TensorFile, open_tensors
from loraprobe.adapter.types import Adapter, Extra, LayerKind, ModuleInfo, Modules, Source
from loraprobe.errors import AdapterError
from loraprobe.lowrank import LowRank
from loraprobe.records import Issue


def read_adapter(
    path: str | Path, name: str | None = None, source: Source | None = None
) -> Adapter:
    """Reads a PEFT directory; factors stay in their file until asked for.

    Raises AdapterError if the files cannot be read and UnsupportedAdapter if the configuration
    is of another kind than LoRA. What is odd but readable is in the adapter's `issues`.
    """
    directory = find_directory(Path(path))
    name = name or directory.name
    config = read_config(directory)
    file = open_tensors(directory)
    reading = _Reading(name, config, file)
    reading.sort_keys()
    infos = reading.pair_factors()
    reading.check_config(infos)
    return Adapter(
        name=name,
        source=source or Source(reference=str(path), path=directory),
        base_model=config.raw.get("base_model_name_or_path") or None,
        modules=Modules(infos, reading.reader(infos)),
        extras=tuple(reading.extras),
        issues=tuple(reading.issues),
        config=dict(config.raw),
        weights_file=file.path,
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


@dataclass
class _Reading:
    """The bookkeeping of one read."""

    name: str
    config: Config
    file: TensorFile
    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    extras: list[Extra] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)

    def issue(
        self, severity: str, code: str, message: str, cure: str, module: str | None = None
    ) -> None:
        found = Issue(severity, code, (self.name,), message, cure, module)  # type: ignore[arg-type]
        self.issues.append(found)

    def extra(self, kind: str, key: str, module: str | None) -> None:
        dtype = str(self.file.dtypes[key]).removeprefix("torch.")
        self.extras.append(Extra(kind, key, module, self.file.shapes[key], dtype))

    def sort_keys(self) -> None:
        """Each key becomes a factor or an extra."""
        unprefixed = 0
        for key in sorted(self.file.shapes):
            unprefixed += not key.startswith(PREFIX)
            found = classify(key)
            if found.role in ("A", "B", "eA", "eB") and found.path is not None:
                self.factors.setdefault(found.path, {})[found.role] = key
            else:
                self.extra(found.role, key, found.path)
        doubled = [p for p in self.factors if p.startswith(PREFIX)]
        if doubled:
            self.issue(
                "error", "doubled-prefix",
                f"{len(doubled)} modules carry the prefix {PREFIX!r} twice (such as "
                f"{doubled[0]!r}); peft loads them without any effect.",
                "Save the adapter from a model that is wrapped once, or rename its keys.",
            )  # fmt: skip
        if unprefixed:
            self.issue(
                "note", "old-keys",
                f"{unprefixed} keys lack the prefix {PREFIX!r}, as older files do; they were read.",
                "",
            )  # fmt: skip

    def pair_factors(self) -> dict[str, ModuleInfo]:
        """A and B of each module, shapes checked; what cannot be paired is an extra."""
        infos: dict[str, ModuleInfo] = {}
        for path, keys in self.factors.items():
            pair = ("eA", "eB") if "eA" in keys or "eB" in keys else ("A", "B")
            if set(keys) != set(pair):
                for key in keys.values():
                    self.extra("unknown", key, path)
                self.issue("error", "unpaired-factor",
                           f"Module {path} has {', '.join(keys.values())} without its partner.",
                           "The file is incomplete; save or download it again.", path)  # fmt: skip
                continue
            info = self._module(path, keys, pair)
            if info is not None:
                infos[path] = info
        return infos

    def _module(
        self, path: str, keys: Mapping[str, str], pair: tuple[str, str]
    ) -> ModuleInfo | None:
        key_a, key_b = keys[pair[0]], keys[pair[1]]
        a, b = self.file.shapes[key_a], self.file.shapes[key_b]
        r = self.config.rank(path)
        if len(a) > 2 or len(b) > 2 or (path and self._is_parameter(path, a, b, r)):
            kind = "convolution" if len(a) > 2 else "target_parameter"
            self.extra(kind, key_a, path)
            self.extra(kind, key_b, path)
            return None
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            self.extra("unknown", key_a, path)
            self.extra("unknown", key_b, path)
            self.issue("error", "shape-mismatch",
                       f"Module {path}: A {list(a)} and B {list(b)} do not multiply.",
                       "The file is damaged; save or download it again.", path)  # fmt: skip
            return None
        if a[0] != r:
            self.issue("error", "rank-contradicts-config",
                       f"Module {path} has rank {a[0]} in the file and {r} in the config, so its "
                       "scale is unknown.",
                       "Correct r or rank_pattern in adapter_config.json.", path)  # fmt: skip
        kind: LayerKind = "linear"
        if pair[0] == "eA":
            kind = "embedding"
        elif self.config.fan_in_fan_out:
            kind = "conv1d"
        dtype = self.file.dtypes[key_a]
        return ModuleInfo(path, kind, a[0], a[1], b[0], self.config.scaling(path), dtype)

    def _is_parameter(self, path: str, a: tuple[int, ...], b: tuple[int, ...], r: int) -> bool:
        """Whether the factors belong to a MoE parameter [E, ...]: A (E*r, in), B (out, E*r)."""
        targets = self.config.raw.get("target_parameters") or []
        return any(
            path == t.rpartition(".")[0] or path.endswith("." + t.rpartition(".")[0])
            for t in targets
            if isinstance(t, str)
        ) and (len(a) == 2 and len(b) == 2 and a[0] == b[1] and a[0] % max(r, 1) == 0)

    def check_config(self, infos: Mapping[str, ModuleInfo]) -> None:
        """Keys nobody knows, and an adapter without modules."""
        if self.config.unknown:
            self.issue("error", "unknown-config",
                       f"The config sets {', '.join(self.config.unknown)}, which loraprobe does not "
                       "know and which may change what the adapter computes.",
                       "Use a newer loraprobe, or remove the key if it is known to be harmless.",
                       )  # fmt: skip
        if self.config.empty_unknown:
            self.issue("note", "unknown-config-empty",
                       f"The config has unknown keys without a value: "
                       f"{', '.join(self.config.empty_unknown)}.", "")  # fmt: skip
        if not infos:
            self.issue("error", "no-modules", "The file holds no LoRA factors that can be used.",
                       "Check that this is the adapter that was trained.")  # fmt: skip

    def reader(self, infos: Mapping[str, ModuleInfo]):
        """A function from module path to LowRank; it closes over the file, not over tensors."""
        places = {}
        for path, info in infos.items():
            first, second = ("eA", "eB") if info.kind == "embedding" else ("A", "B")
            places[path] = (self.factors[path][first], self.factors[path][second], info.scaling)
        file = self.file

        def read(path: str) -> LowRank:
            key_a, key_b, scaling = places[path]
            return LowRank(file.read(key_a), file.read(key_b), scaling)

        return read
