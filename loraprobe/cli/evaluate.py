"""`loraprobe merge-and-eval`: the whole audit."""

from __future__ import annotations

from typing import Any

from loraprobe.cli.options import Base, Refs, Tasks, with_options
from loraprobe.cli.output import Output
from loraprobe.cli.saving import check_outputs, checked_shard, with_loading, write
from loraprobe.command_options import EVALUATE
from loraprobe.errors import UsageError
from loraprobe.options import Options

OUTPUT = (
    "target overwrite push public json html markdown save_samples explain dry_run quiet exit_zero"
)


@with_options(
    *EVALUATE,
    "shard",
    *OUTPUT.split(),
    target={"help": "Directory for the recommended composition, or the share of --shard."},
)
def merge_and_eval(
    refs: Refs,
    options: Options,
    output: Output,
    task: Tasks = None,
    base: Base = "auto",
) -> None:
    """Compose adapters every reasonable way, measure each on your task, and give a verdict.

    Systems: the base, each adapter alone, merges, routers, a chain of the adapters where the task
    has hops, and two controls. Exit code 0: composing likely works; 1: it does not; 3: undecided.
    """
    from loraprobe.pipeline import commands, shards

    if output.save_samples is not None and options.metric == "answer_loss":
        raise UsageError(
            "--save-samples keeps answers, and --metric answer_loss asks for none; leave one out."
        )
    sharded = checked_shard(output, options, always=True)
    with output.progress() as progress:
        written = check_outputs(output, options, refs, base, task)
        given: dict[str, Any] = {"base": base, "tasks": task or (), "options": options}
        given |= {"progress": progress, "written": written}
        if output.dry_run:
            cost = commands.estimate_cost(refs, **given)
        elif sharded is not None:
            made = shards.run_shard("merge-and-eval", refs, sharded, **given)
        else:
            found = commands.merge_and_eval(refs, **given)
    if output.dry_run:
        return output.estimate(cost)
    if sharded is not None:
        return output.shard("merge-and-eval", made)
    audit = found.audit
    if output.target is not None and found.made is None:
        output.say(f"Nothing was written to {output.target}: {found.why_nothing}")
    elif output.target is not None:
        write(found.made, output)
        audit = with_loading(audit, found.made, output.target)
    output.result(audit, samples=found.samples)
