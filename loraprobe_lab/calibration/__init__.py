"""The calibration of the verdict: from worlds whose truth is measured to a probability for users.

A *case* is one trial of one world under one method: what was forecast before any composition was
run, and what the composition then gained. `collect` observes the trials of worlds (`observe`),
keeps them (`trials`) and makes cases of them; `fit` fits the spread of measured gains around
forecasts; `validation` says how good the fit is on bases, scenarios and architectures that it never
saw, and tells it on a page; `run` does all of it. What it ships is a file of five coefficients that
`loraprobe.verdict` evaluates without any library.
"""
