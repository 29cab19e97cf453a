"""The stages of each command in order.

`commands` has one function for each command that composes or measures, which the command line and
Python (but its `route`) call; that of `verify` is in `verify`. These have the stages:

    session         options, progress and times of one run, which the stages share
    inputs          opens adapters and base; `task_files` tasks, probe files and prompts
    examination     compatibility and diagnostics, licences, servers
    transforms      `--subtract` and `--balance`
    systems         plans what is evaluated, and builds the compositions
    opening         the base, the form of prompts, and results that `--resume` finds
    learned_weights, fitted_routers   what is learned before systems are asked
    evaluate        answers on the base model, round by round; `gate_statistics` tells how token
                    routers shared their gates
    pilot           what `inspect` asks of a sample, or without a task
    screen          chooses sets of a library by `ranking` and evaluates them
    saved           a composition and its directory
    converting      one adapter written again; `other_kinds` makes a LoRA of other PEFT types
    conclusion      the verdict, what it recommends, and the audit
    serving         what servers can run of that, and the commands that serve it
    provenance      what a merge or composition is made of, for its card

`served` asks a running server about an adapter. `estimate` tells what an evaluation will take.
`task_preview` shows questions as a model reads them. `on_ray` has the tasks that ask the base on a
Ray cluster, `engine` has a server answer the questions, `supervisor` stops one that was started.
"""
