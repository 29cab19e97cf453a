"""The calibration of the verdict: from worlds whose truth is measured to a probability for users.

A *case* is one trial of one world under one method: what was known before any composition was run
(`features`), what the composition then gained (`truth`), and whether that is more than the margin
(`label`). `collect` makes cases from worlds, `model` fits them, `measures` says how good the fit is
on bases, scenarios and architectures that it never saw, `report` and `figure` show it, and `run`
does all of it. Only this package needs scikit-learn and matplotlib; what it ships is a readable
table of coefficients that loraprobe.verdict evaluates without either.
"""
