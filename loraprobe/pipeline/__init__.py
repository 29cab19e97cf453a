"""The stages of each command in order.

`commands` has one function a command, which the command line and the Python functions call; that of
`screen` is in the package `screening`, that of `verify` in `verify`. It calls, in this order:

    inputs          opens adapters, base, tasks and prompt files
    examination     compatibility and diagnostics, licences, servers
    transforms      `--subtract` and `--balance`
    inspecting      answers on the base model, to a sample of the questions
    evaluating      answers on the base model, by `rounds`; for both, `evaluator` loads the base
                    and runs systems on it, `systems` builds compositions with `portfolio`,
                    `weight_search` and `router_fitting`, and `results` stores the results for
                    `--resume`
    saved           a composition and its directory, which `loading` reads
    converting      one adapter written again
    conclusion      the verdict, and what it recommends
    audits, cards   the audit and the model card

`served` asks a running server about an adapter. `estimating` tells what an evaluation will take.
`on_ray` has the tasks that ask the base on a Ray cluster.
"""
