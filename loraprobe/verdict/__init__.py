"""The verdict: a pure function of evidence. It uses no torch and no clock, and reads no files
but its own tables (`codes.toml`, `calibration.json`) and, by `read_calibration`, a user's own.

`evidence` is what it may see, `rules` decides, `advice` says what to use, `next_command` what to
run, `probability` how sure a gain is, and `reasons` has the codes and sentences of all of these.
"""

from loraprobe.verdict.evidence import Evidence, LibraryChoice
from loraprobe.verdict.next_command import Request, next_command
from loraprobe.verdict.probability import Calibration, read_calibration
from loraprobe.verdict.rules import candidates, decide, decide_compositions
