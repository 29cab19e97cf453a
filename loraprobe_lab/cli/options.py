"""Options that several commands of the lab share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
OutputPath = Annotated[
    Path, typer.Option("--output", "-o", help="Where to write what is made.", show_default=False)
]
BaseDirectory = Annotated[
    Path | None,
    typer.Option("--base", help="A causal model's directory; without it small bases are trained."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]


def use_threads(count: int | None) -> None:
    """Sets the number of CPU threads of torch, where one is given."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
