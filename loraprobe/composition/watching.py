"""Watches what reaches the modules that adapters would change, in a model that carries none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from loraprobe.composition.contract import Composition
from loraprobe.composition.targets import check_extras, check_model, target

Look = Callable[[str, Tensor, Tensor], None]


@contextlib.contextmanager
def watched(model: nn.Module, composition: Composition, look: Look) -> Iterator[nn.Module]:
    """Calls look(path, input, output) whenever a module that the composition adapts has run.

    input: [..., in], or token ids [...] of an embedding; output: [..., out]. The model computes
    what it computes without the composition. Raises as `composed` does where it does not fit.
    """
    check_model(model)
    check_extras(model, composition)
    targets = {path: target(model, composition, path) for path in composition.paths}
    with contextlib.ExitStack() as undo:
        for path, module in targets.items():
            hook = module.register_forward_hook(_hook(path, look), with_kwargs=True)
            undo.callback(hook.remove)
        yield model


def _hook(path: str, look: Look) -> Callable[..., None]:
    def see(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], output: Tensor) -> None:
        look(path, args[0] if args else next(iter(kwargs.values())), output)

    return see
