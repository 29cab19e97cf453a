"""Resolves references to adapters and base models: local directories, or a commit on the Hub.

Only the needed files are downloaded: config and weights of an adapter, and its card; config,
tokenizer and weights in one format of a base. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE
apply. Every failure raises a LoraprobeError with one sentence; functions name its classes.

reference    the text of a reference -> its parts
client       files of one commit; the address and the errors of the Hub's client
loading      references -> adapters with what was in their bases; the folder of a base
copies       whether two names are one base
"""

from loraprobe.hub.client import Snapshot, beside, model_card, read_card
from loraprobe.hub.copies import one_base
from loraprobe.hub.loading import (
    base_directory,
    common_base,
    load,
    load_all,
    load_each,
    resolve_adapter,
    resolve_base,
)
from loraprobe.hub.reference import Reference, reference_of
