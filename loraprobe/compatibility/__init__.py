"""Checks whether adapters (and a base) fit together, before a model is run.

An issue has a severity, a stable code (`loraprobe.findings`), the adapters and the module that it
concerns, a message, and a cure. An error means that a composition would not compute what was
trained. A warning needs a decision by the user. A note tells what loraprobe handles and other
tools may not.

aligning    adapters on one naming of modules and one layout of fused projections
identity    issues about names of bases, revisions, task types, tokenizers and parents
layout      issues about paths, shapes, kinds and ranks
contents    issues about the tensors; licences: about what the cards declare
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility.aligning import align, aligned
from loraprobe.compatibility.contents import (
    CURE_OF_TIES,
    TensorChecks,
    content_issues,
    extra_issues,
    ties_differ,
)
from loraprobe.compatibility.identity import Purpose, identity_issues, parent_issues
from loraprobe.compatibility.layout import base_issues, layout_issues
from loraprobe.errors import CompatibilityError, UsageError
from loraprobe.findings import CODES, accepted
from loraprobe.formatting import nearest
from loraprobe.records import Compatibility, Issue, by_severity

# Where a base is given, such an error says that it is not the one that an adapter was trained on.
OF_BASE = ("module-not-in-base", "base-copy", "shapes-differ")
# Of two adapters with such an error one has to be exchanged for another adapter of the base.
UNLIKE = ("task-type-mismatch", "architecture-mismatch", "shapes-differ", "kinds-differ")


def check(
    adapters: Sequence[Adapter],
    base: Base | None = None,
    *,
    purpose: Purpose = "inspect",
    allow: Collection[str] = (),
) -> Compatibility:
    """All issues about the adapters of one composition, errors first; the factors are read once.

    The arguments and errors are those of `check_headers`.
    """
    adapters = aligned(adapters, base)
    checked = check_headers(adapters, base, purpose=purpose, allow=allow)
    return with_contents(checked, TensorChecks(adapters).read(), allow)


def check_headers(
    adapters: Sequence[Adapter],
    base: Base | None = None,
    *,
    purpose: Purpose = "inspect",
    allow: Collection[str] = (),
) -> Compatibility:
    """The issues that are known without reading a factor, errors first.

    purpose: "inspect", "merge", "measure" or "route". Base names that differ while paths and shapes
    fit are an error for the first two and a warning for the others, where the user chose the base.
    Weights that the config does not target are an error for "merge", "route" and several adapters.
    "route" runs the adapters, which requires causal language models. allow: codes whose errors
    become warnings.

    Adapters are compared with one naming and on one layout (see `aligned`). Raises
    UsageError for a code in `allow` that does not exist.
    """
    adapters, refused = align(adapters, base)
    layout = [*layout_issues(adapters), *refused]
    fit = all(issue.severity != "error" and issue.code != "depth-differs" for issue in layout)
    composing = len(adapters) > 1 or purpose in ("merge", "route")
    issues = [
        _composed(issue, adapter, base) if composing else issue
        for adapter in adapters
        for issue in adapter.issues
    ]
    issues += identity_issues(adapters, base, purpose, fit)
    issues += parent_issues(adapters, base)
    issues += layout
    issues += extra_issues(adapters, base, composing=composing)
    if base is not None:
        issues += base_issues(adapters, base)
    known = {*CODES, *(issue.code for issue in issues)}
    for code in allow:
        if code not in known:
            found = sorted({issue.code for issue in issues if issue.severity == "error"})
            hint = nearest(code, known, f"take one of {', '.join(found[:3])}." if found else "")
            raise UsageError(f"There is no finding {code!r} to allow:", hint)
    return _sorted(issues, allow)


def _composed(issue: Issue, adapter: Adapter, base: Base | None) -> Issue:
    """The issue, as an error where a composition would be another function than in peft."""
    if issue.code == "weights-untargeted":  # which a composition would apply and peft leaves out
        return replace(issue, severity="error")
    if issue.code == "shared-weights" and ties_differ(adapter, base):
        cure = issue.cure if base is None else CURE_OF_TIES
        return replace(issue, severity="error", cure=cure)
    return issue


def with_contents(
    checked: Compatibility, contents: TensorChecks, allow: Collection[str] = ()
) -> Compatibility:
    """Adds the issues about tensors, such as NaN and zero deltas, to those of headers."""
    return _sorted([*checked.issues, *content_issues(contents)], allow)


def require(checked: Compatibility) -> Compatibility:
    """Returns `checked`. Raises CompatibilityError with the first error, and how many others."""
    errors = checked.errors
    if errors:
        more = f" ({len(errors) - 1} more; `loraprobe inspect` lists them)" if errors[1:] else ""
        first = errors[0]
        raise CompatibilityError(first.message, first.cure, f"[{first.code}]{more}")
    return checked


def _sorted(found: Sequence[Issue], allow: Collection[str]) -> Compatibility:
    """The issues, errors first. Errors whose code is in `allow` become warnings."""
    return Compatibility(tuple(by_severity([accepted(issue, allow) for issue in found])))
