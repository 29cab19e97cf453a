"""The verdict: a pure function of evidence. It uses no torch and no clock, and reads no files
but its own tables (`codes.toml`) and those of extensions.

`evidence` is what it may see, `rules` decides, `advice` says what to use, `next_command` what to
run (`programs` where that is Python), `annotation` what is told beside a decision, and `reasons`
has the codes and sentences of all of these.
"""

from loraprobe.verdict.annotation import Annotation, Annotator
from loraprobe.verdict.evidence import Evidence, Exclusion
from loraprobe.verdict.next_command import Request, next_command
from loraprobe.verdict.rules import candidates, decide, decide_compositions
