"""The stages of each command in order.

`commands` has one function for each command that composes or measures, which the command line and
Python (but its `route`) call. `loraprobe.session` has options, progress and times of a run. The
stages are:

    inputs          opens adapters and base; `task_files` tasks, probe files and prompts
    preflight       compatibility and diagnostics, licences
    transforms      `--subtract` and `--balance`
    plan            plans what is evaluated, and builds the compositions
    evaluator       opens the base, the form of prompts and kept results, and asks
    fitting         weights and routers that are fitted before systems are asked
    evaluate        answers on the base model, round by round; for `inspect` a first round
    conclusion      the evidence of all stages, the verdict on it, and the next command
    outcome         the end of a command: what it made, and its audit as it may be published

`estimate` tells what an evaluation will take.
"""
