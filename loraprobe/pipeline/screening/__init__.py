"""A library of adapters: what can be used, and what of it to use for a task.

In the order of a screen: `command` has the stages and opens library and base, `choosing` asks base
and adapters alone and forecasts all sets, `ranking` takes the best of them that differ, `proving`
composes and evaluates these, `answer` makes the audit. `cost` tells beforehand what that will take.
"""
