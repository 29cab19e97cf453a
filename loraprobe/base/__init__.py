"""The base model: its shapes and single weights without loading it, and the loaded model.

Shapes come from the headers of the weight files, which takes milliseconds even for a 70B model.
Module paths are those of the loaded model, which adapters also use.

model       a directory -> Base: config, single weights, hashes; declared checks what they claim
naming      the names of modules in files, in classes of models and in adapters
loading     Base -> the model and its tokenizer; quiet silences libraries meanwhile
"""

from loraprobe.base.loading import load_base, pick_device, pick_dtype
from loraprobe.base.model import Base, open_base
from loraprobe.base.naming import ModuleNames, module_names
