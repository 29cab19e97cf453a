"""The calibration of the verdict: from measured gains on worlds to a probability.

A *case* is one adapter set of one world under one method, with the measured gain. `collect` asks
the adapter sets of worlds and stores what every system answered (`answered`), from which cases
follow; `fit` fits the spread of measured gains; `validation` measures the fit on left-out bases,
scenarios and architectures and renders the page, `several` on sets with several tasks; `run` does
all of it. The result is a file of a few coefficients, which `loraprobe.verdict` evaluates.
"""
