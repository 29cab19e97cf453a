"""The calibration of the verdict: from measured gains on worlds to a probability.

A *case* is one adapter set of one world under one method: the forecast gain, made before any
composition was run, and the measured gain. `collect` evaluates the adapter sets of worlds
(`observe`), stores them (`observations`) and derives cases from them; `fit` fits the spread of
measured gains around forecasts; `validation` measures the fit on left-out bases, scenarios and
architectures and renders the page; `run` does all of it. The result is a file of five coefficients,
which `loraprobe.verdict` evaluates.
"""
