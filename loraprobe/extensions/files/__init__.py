"""Files: an adapter written again as peft and servers read it, a base with a merge in its weights,
and directories that are checked against their cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from loraprobe.extension import Extension, OutputFormat, Remarks, Result
from loraprobe.options import AddedOptions, CommandSpec, Options, option

if TYPE_CHECKING:
    from loraprobe.records import Progress
    from loraprobe.session import Session

PLACE = "loraprobe.extensions.files"
MLX = "adapters.safetensors"  # the weights that mlx-lm writes
KEPT_ENERGY = 0.95  # of each weight's change, by a LoRA made of an adapter of another type
CUT_ENERGY = 1e-4  # of each weight's change, that the same loses at most by --rank auto
# PEFT types that change a weight W to W + dW, of which `convert` makes a LoRA; peft knows dW.
WITH_DELTA = frozenset(
    "ADALORA C3A DELORA FOURIERFT GRALORA HIRA LOHA LOKR MISS PSOFT RANDLORA SHIRA TINYLORA "
    "UNILORA VBLORA VERA WAVEFT".split()
)


@dataclass(frozen=True)
class FilesOptions(AddedOptions):
    """Where a merge is written in another format, and of what a written one is said to be made."""

    title: ClassVar[str] = "Full models"

    full_model: Path | None = option(
        None,
        "DIR",
        "Write the base with the merge added to its weights to this directory, which any server "
        "runs; methods with dense results lose nothing there to a rank.",
        typed=True,
        commands=("merge", "merge-and-eval"),
    )
    of: tuple[str, ...] = option(
        (),
        "REF",
        "An adapter of which any tool made DIR: say how much of it is in the weights, and read no "
        "card; repeated for each.",
        commands=("verify",),
    )


class FullModel(OutputFormat):
    """The base with the merge added to its weights."""

    flag, name = "--full-model", "a full model"
    load = "AutoModelForCausalLM.from_pretrained({0})"

    def place(self, options: Options) -> Path | None:
        return options.of_extension(FilesOptions).full_model

    def takes(self, made: Any) -> bool:
        from loraprobe.merging import Merged

        return isinstance(made, Merged)

    def write(
        self, made: Any, place: Path, overwrite: bool, progress: Progress | None
    ) -> Sequence[str]:
        from loraprobe.extensions.files.full_model import notes_on_base, save_full_model
        from loraprobe.records import display_name

        lost = save_full_model(made, place, overwrite, progress)
        told = f"rounding to the base's dtype changes {lost:.1%} of what the merge adds"
        return [
            f"Wrote the base with {display_name(made.name)} to {place}; {told}.",
            *notes_on_base(made),
        ]

    def check(self) -> None:
        from loraprobe.extensions.files.full_model import check_transformers

        check_transformers()


class Files(Extension):
    """Converts adapters, writes full models, and verifies what was written."""

    options = FilesOptions
    output_formats = (FullModel(),)
    codes = Path(__file__).with_name("codes.toml")
    other_types = dict.fromkeys(
        WITH_DELTA, "loraprobe convert {place} --base={base} -o DIR makes one"
    )
    foreign_weights: ClassVar[Mapping[str, tuple[str, str]]] = {
        MLX: (f"{PLACE}.mlx.read_mlx", "mlx-file")
    }
    functions: ClassVar[Mapping[str, str]] = {
        name: f"{PLACE}.functions.{name}" for name in ("convert", "save_full_model", "verify")
    }
    commands = (
        CommandSpec(
            "convert",
            f"{PLACE}.command.convert",
            "Make",
            (
                "loraprobe convert ./legal -o portable",
                "loraprobe convert ./loha --base auto -o lora",
            ),
            "base like allow rank keep_energy portable to threads target overwrite "
            "json explain quiet",
            changed={
                "rank": {
                    "help": "Rank of a LoRA made of another PEFT type; auto: as many as keep "
                    "99.99 % of the energy of each change."
                },
                "target": {"default": ...},
            },
            done="CONVERTED",
        ),
        CommandSpec(
            "verify",
            f"{PLACE}.command.verify",
            "Other",
            ("loraprobe verify merged", "loraprobe verify full --base owner/base --of ./legal"),
            "base weights threads json quiet",
            changed={
                "weights": {
                    "help": "The weight that each adapter of --of should have, such as 0.7,0.3."
                }
            },
        ),
    )

    def remarks(self, session: Session, result: Result) -> Remarks:
        """The command that checks what is written. It names what `verify` does not find without:
        local sources that do not lie below the working directory, and the base, unless the adapters
        name it."""
        from loraprobe.adapters import agreed_base, local_name
        from loraprobe.hub import reference_of
        from loraprobe.pipeline.outcome import below_here
        from loraprobe.records import Command

        if result.place is None:
            return Remarks()
        sources, base = (*result.adapters, *result.subtrahends), result.base
        local = [one for one in sources if one.source.path and not one.source.commit]
        apart = [reference_of(one) for one in local if not below_here(str(one.source.path))]
        options = []
        if base is not None and base.reference != agreed_base(x.base_model or "" for x in sources):
            options.append(("--base", below_here(base.reference) or base.summary().reference))
        place = local_name(str(result.place))
        return Remarks(check=Command("verify", (place, *apart), tuple(options)))


EXTENSION = Files()
