"""`loraprobe lab`: controlled worlds with known answers."""

from __future__ import annotations

import typer

from loraprobe_lab.cli import experiments, worlds

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build controlled worlds whose right verdict is known.",
)


@app.callback()
def lab() -> None:
    """Build controlled worlds whose right verdict is known."""


app.command("build")(worlds.build)
app.command("pairs")(worlds.pairs)
app.command("calibrate")(worlds.calibrate)
app.command("reproduce")(experiments.reproduce)
app.command("map")(experiments.success_map)
app.command("methods")(experiments.methods)
app.command("theory")(experiments.theory)
app.command("rule")(experiments.rule)
app.command("recycling")(experiments.recycling)
