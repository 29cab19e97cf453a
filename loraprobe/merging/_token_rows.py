"""Linear merges of trained token rows (`trainable_token_indices`), which replace rows of the base.

    row = row0 + sum_i w_i (row_i - row0)

for each token that some adapter trained; an adapter that did not counts as row0. The base's row0 is
not needed where the weights of the adapters that trained a token sum to 1: the mean of equal sets
of tokens, or the sum of disjoint ones.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.adapters.lazy import TokenRows
from loraprobe.errors import BaseError, CompatibilityError, UnsupportedAdapter
from loraprobe.formatting import listing
from loraprobe.merging._choices import BaseTensors
from loraprobe.merging._full_weights import SUM_TOLERANCE
from loraprobe.records import Issue

CODE = "token-delta"
FOLD = "merge one of them into its base with peft first"


def merge_token_rows(
    adapters: Sequence[Adapter],
    coefficients: Sequence[float],
    base: BaseTensors | None,
    allow: Collection[str],
) -> tuple[dict[str, TokenRows], list[Issue]]:
    """Module -> merged rows, in the sources' widest dtype; and a warning for what was dropped.

    Raises UnsupportedAdapter, with the cure, for a merge that would not be exact and is not in
    `allow`; CompatibilityError for rows that do not fit each other or the base.
    """
    holders = [adapter for adapter in adapters if adapter.token_rows]
    _check_tying(holders)
    merged: dict[str, TokenRows] = {}
    notes: list[Issue] = []
    for path in dict.fromkeys(path for adapter in holders for path in adapter.token_rows):
        _check_alone(path, adapters)
        held = {i: a.token_rows[path] for i, a in enumerate(adapters) if path in a.token_rows}
        names = tuple(adapters[i].name for i in held)
        made = _combined(path, held, coefficients, base, names)
        if made is not None:
            merged[path] = made
            continue
        if CODE not in allow:
            raise UnsupportedAdapter(
                f"Adapter {listing(names)} holds trained rows of {path} (token_delta) that mix "
                "with the base's, since the weights of the adapters that trained a token do not "
                f"sum to 1; add --base DIR or --base auto, or --allow {CODE} to drop them "
                "knowingly."
            )
        notes.append(Issue("warning", CODE, names, f"Allowed: the rows of {path} were dropped."))
    return merged, notes


def _combined(
    path: str,
    held: dict[int, TokenRows],
    coefficients: Sequence[float],
    base: BaseTensors | None,
    names: Sequence[str],
) -> TokenRows | None:
    """The merged rows, summed in float64; None if rows of the base are needed and absent."""
    tokens = sorted({token for rows in held.values() for token in rows.tokens})
    place = {token: number for number, token in enumerate(tokens)}
    values = {i: rows.values for i, rows in held.items()}
    widths = {rows.shape[1] for rows in values.values()}
    if len(widths) > 1:
        raise CompatibilityError(
            f"The rows of {path} have {listing(sorted(map(str, widths)))} entries in "
            f"{listing(names)}: their bases differ; merge adapters of one base."
        )
    total = torch.zeros(len(tokens), widths.pop(), dtype=torch.float64)
    kept = torch.ones(len(tokens), dtype=torch.float64)  # the share of the base's own row
    for i, rows in held.items():
        index = [place[token] for token in rows.tokens]
        total[index] += coefficients[i] * values[i].to(torch.float64)
        kept[index] -= coefficients[i]
    mixed = [n for n, share in enumerate(kept.tolist()) if abs(share) > SUM_TOLERANCE]
    if mixed:
        if base is None:
            return None
        start = _of_base(path, [tokens[n] for n in mixed], base)
        if start.shape[1] != total.shape[1]:
            raise CompatibilityError(
                f"The rows of {path} have {total.shape[1]} entries in {listing(names)} and "
                f"{start.shape[1]} in the base; give the base that they were trained on."
            )
        total[mixed] += kept[mixed, None] * start.to(torch.float64)
    dtype = functools.reduce(torch.promote_types, (rows.dtype for rows in values.values()))
    return TokenRows(tuple(tokens), functools.partial(total.to, dtype))


def _of_base(path: str, tokens: Sequence[int], base: BaseTensors) -> Tensor:
    """The base's rows of these tokens. Raises CompatibilityError where it has none."""
    try:
        table = base.parameter(f"{path}.weight")
    except BaseError as error:
        raise CompatibilityError(str(error)) from error
    if tokens[-1] >= len(table):
        raise CompatibilityError(
            f"Token {tokens[-1]} of {path} was trained, and the base has {len(table)} rows there; "
            "resize the base's embedding as in the adapter's training."
        )
    return table[list(tokens)]


def _check_tying(holders: Sequence[Adapter]) -> None:
    """Raises UnsupportedAdapter where peft's treatment of a tied head would depend on the base.

    peft ties the head's rows to the embedding's unless the config names both with other tokens, and
    writes equal tokens of both only for a base that ties nothing.
    """
    modules = {path for adapter in holders for path in adapter.token_rows}
    lists = [[rows.tokens for rows in adapter.token_rows.values()] for adapter in holders]
    untied = any(len(given) > 1 and len(set(given)) == 1 for given in lists)
    differing = [a.name for a, given in zip(holders, lists, strict=True) if len(set(given)) > 1]
    if differing or (len(modules) > 1 and not untied):
        names = differing or [adapter.name for adapter in holders]
        raise UnsupportedAdapter(
            f"Adapter {listing(names)} holds trained rows (token_delta) of "
            f"{listing(sorted(modules))} for different tokens, which peft ties or not by the base; "
            f"{FOLD}."
        )


def _check_alone(path: str, adapters: Sequence[Adapter]) -> None:
    """Raises UnsupportedAdapter for a module that other adapters change in another way."""
    rows = [adapter.name for adapter in adapters if path in adapter.token_rows]
    for what, others in (
        ("factors", [a.name for a in adapters if path in a.layout]),
        ("a whole weight", [a.name for a in adapters if f"{path}.weight" in a.whole]),
    ):
        if others:
            raise UnsupportedAdapter(
                f"{path} has trained token rows in {listing(rows)} and {what} in "
                f"{listing(others)}, which one adapter cannot hold; {FOLD}."
            )
