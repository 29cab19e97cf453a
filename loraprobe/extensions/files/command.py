"""The command lines of `convert` and `verify`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from loraprobe.cli.making import save
from loraprobe.cli.parameters import ADAPTERS, COMPOSITION, OUTPUT, argument, setting
from loraprobe.cli.running import Output, imports_done
from loraprobe.errors import UsageError
from loraprobe.extensions.files import KEPT_ENERGY, FilesOptions
from loraprobe.options import Options

CONVERTING = "loraprobe.extensions.files.converting"


def convert(
    options: Options,
    output: Output,
    ref: Annotated[str, argument("REF", "The adapter, as for inspect.")],
    base: str | None,
    like: Annotated[
        str | None,
        setting(
            "REF",
            "Give the modules the names that this base or adapter has for them, such as those of "
            "the class with vision.",
            ADAPTERS,
        ),
    ] = None,
    to: Annotated[
        str,
        setting("LIBRARY", "Who reads what is written: peft and servers, or mlx (mlx-lm).", OUTPUT),
    ] = "peft",
    keep_energy: Annotated[
        float,
        setting(
            "SHARE",
            "Refuse a LoRA made of another PEFT type where it keeps less of a change's energy.",
            COMPOSITION,
        ),
    ] = KEPT_ENERGY,
    portable: Annotated[
        bool,
        setting(
            " ",
            "One rank and one scaling in all modules, or those of the file.",
            COMPOSITION,
            "--portable/--compact",
        ),
    ] = True,
) -> None:
    """Rewrite one adapter so that peft and servers read it.

    A LoRA computes the same afterwards: keys get peft's prefix once, a .bin becomes safetensors,
    rsLoRA and patterns become one rank and one scaling. What cannot be kept exactly is refused by
    name. DoRA stays DoRA. With --base stacked experts of peft before 0.19.1 get today's order, and
    an AdaLoRA, LoHa, LoKr, VeRA or another type that changes weights becomes a LoRA, which keeps at
    least --keep-energy of each change. An adapter of mlx-lm is read as any other, and --to mlx
    writes one.
    """
    made = {"like": like, "portable": portable, "keep_energy": keep_energy, "to": to}
    save(output, options, "convert", [ref], base, None, module=CONVERTING, **made)


def verify(
    options: Options,
    output: Output,
    directory: Annotated[
        str | None, argument("DIR", "What merge, route or merge-and-eval wrote.")
    ] = None,
    sources: Annotated[
        list[str] | None,
        argument("REF", "Where adapters and task files are of which it was made, if they moved."),
    ] = None,
    base: Annotated[
        str | None, setting("REF", "Where the base is, if one was used and it moved.")
    ] = None,
) -> None:
    """Make a merge or a composition again from its card and compare the whole directory.

    With --of it reads no card: it says how much of these adapters is in a full model or an adapter
    that any tool wrote, module by module, what else is in it, and what rounding took (see
    docs/merge-check.md). Exits 0 if everything holds, 1 if something does not, 3 if it cannot be
    told, such as where a source is not found.
    """
    if directory is None:
        raise UsageError("verify takes what merge, route or merge-and-eval wrote; name it, as DIR.")
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    raise typer.Exit(_verify(directory, sources or [], base, options, output))


def _verify(
    directory: str, sources: list[str], base: str | None, options: Options, output: Output
) -> int:
    """Compares a directory with its card, or with the adapters of --of; the exit code."""
    from loraprobe.extensions.files import verifying
    from loraprobe.extensions.files.verification import as_plain, verification_sections
    from loraprobe.report.terminal import render

    imports_done()
    of, weights = options.of_extension(FilesOptions).of, options.weights
    if isinstance(weights, str):
        raise UsageError(f"verify takes numbers as --weights, not {weights}.")
    if of:
        with output.progress() as progress:
            verification = verifying.verify(directory, sources, base, of, weights, progress)
    else:
        verification = verifying.verify(directory, sources, base, weights=weights)
    told = {True: (0, "verified"), False: (1, "not verified"), None: (3, "cannot tell")}
    code, short = told[verification.passed]
    if verification.contents is not None:
        short = verification.contents.verdict.replace("-", " ")
    shown, title = verification_sections(verification), f"loraprobe verify {verification.directory}"
    show = partial(render, Console(highlight=False), title, shown, "short")
    output.tell("verify", as_plain(verification), short, show)
    return code
