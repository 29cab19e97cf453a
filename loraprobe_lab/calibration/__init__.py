"""The calibration of the verdict: from measured gains on worlds to a probability.

`collect` asks the adapter sets of worlds and stores what every system answered, from which `cases`
follow; `fit` fits the spread of measured gains, measures the fit on left-out bases, kinds and
architectures, and on sets with several tasks, and renders the page. The result is a file of a few
coefficients, which `loraprobe.verdict` evaluates.
"""
