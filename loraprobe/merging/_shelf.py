"""The listing of this folder: every merge method by the name of its file."""

from loraprobe.merging._method import MergeMethod
from loraprobe.shelf import Shelf

METHODS: Shelf[MergeMethod] = Shelf("loraprobe.merging", MergeMethod, "merge method")  # type: ignore[type-abstract]
