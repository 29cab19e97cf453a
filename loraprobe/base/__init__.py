"""The base model: its shapes and single weights without loading it, and the loaded model.

Shapes come from the headers of the weight files, which takes milliseconds even for a 70B model.
Module paths are those of the loaded model, which adapters also use.
"""

from loraprobe.base.model import Base, open_base, pick_device, pick_dtype
from loraprobe.base.naming import ModuleNames, module_names
