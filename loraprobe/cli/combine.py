"""`loraprobe combine`: the result of a run from the directories of its shards."""

from __future__ import annotations

from pathlib import Path

import typer

from loraprobe.cli.config import JOINED, WORDS


def combine(ctx: typer.Context) -> None:
    """Join the shards of a run (--shard I/N): DIR..., then further options of that command.

    The command runs again without --shard and takes what the shards computed. What no shard could
    know it asks itself: the controls of the best composition, the chain, the probes of the base and
    the gates of routers.
    """
    from loraprobe.pipeline import shard_files

    first = next((k for k, w in enumerate(ctx.args) if w.startswith("-")), len(ctx.args))
    places, arguments = shard_files.joined_run([Path(place) for place in ctx.args[:first]])
    words = [*arguments, *ctx.args[first:]]
    root = ctx.find_root().command
    WORDS[:], JOINED[:] = words, places
    root.as_json = "--json" in words  # type: ignore[attr-defined]
    try:
        with root.make_context("loraprobe", list(words), parent=None) as inner:
            root.invoke(inner)
    finally:
        JOINED.clear()
