"""Which adapters of a library fit together, or fit the base, from the headers of their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from loraprobe import compatibility
from loraprobe.adapters import Adapter, layer_pattern
from loraprobe.base import Base
from loraprobe.errors import LoraprobeError
from loraprobe.library.reading import Member, issue_of
from loraprobe.records import Issue
from loraprobe.secrets import map_texts, public_text

Shapes = Mapping[str, tuple[int, int]]  # kind of module -> (out, in)


class _Kind(NamedTuple):
    """What an adapter was trained for, as far as its header tells."""

    base: str | None
    task: str | None
    shapes: Shapes


def fitted(
    members: Sequence[Member], base: Base | None = None, allow: Collection[str] = ()
) -> list[Member]:
    """The members, those that do not fit as `unfit` with the reasons.

    They have to fit the base; without one, what most of them fit: the commonest base model, and the
    commonest shape of each kind of module. allow: codes of issues that are accepted.
    """
    kinds: dict[str, _Kind] = {}
    made = list(members)
    for at, member in enumerate(made):
        if not member.usable:
            continue
        try:
            adapter = member.open()
            kinds[member.record.name] = _kind(adapter)
            if base is not None:
                found = compatibility.check(
                    [adapter], base, purpose="route", allow=allow, contents=_unread(adapter)
                )
                made[at] = _judged(member, found.issues)
        except LoraprobeError as error:  # its files changed meanwhile
            issue = map_texts(issue_of(error, member.record.name), public_text)
            made[at] = member.changed(issue, state="broken")
    return made if base is not None else _against_most(made, kinds, allow)


def commonest_base(members: Sequence[Member]) -> Member | None:
    """The first usable member of the base model that most of them name; None if none names one."""
    usable = [member for member in members if member.usable]
    base = _commonest(member.record.base_model for member in usable)
    return next((m for m in usable if m.record.base_model == base), None) if base else None


def _against_most(
    members: Sequence[Member], kinds: Mapping[str, _Kind], allow: Collection[str]
) -> list[Member]:
    """The members, each compared with one that is as most of them are."""
    usual = _usual(list(kinds.values()))
    alike = {name for name, kind in kinds.items() if _as_usual(kind, usual)}
    standard = next((m.open() for m in members if m.record.name in alike), None)
    if standard is None:
        return list(members)
    made = []
    for member in members:
        if member.usable and member.record.name not in alike:
            pair = [standard, member.open()]
            found = compatibility.check(pair, allow=allow, contents=_unread(*pair))
            member = _judged(member, found.issues)
        made.append(member)
    return made


def _unread(*adapters: Adapter) -> compatibility.TensorChecks:
    """Checks of tensors that were not read: what they hold is known from the first pass."""
    return compatibility.TensorChecks(adapters)


def _commonest(names: Iterable[str | None]) -> str | None:
    counted = Counter(name for name in names if name)
    return counted.most_common(1)[0][0] if counted else None


def _judged(member: Member, issues: Sequence[Issue]) -> Member:
    """The member with what was found about it; `unfit` if that is an error."""
    name = member.record.name
    known = {(issue.code, issue.module) for issue in member.record.issues}
    own = [issue for issue in issues if name in issue.adapters and issue.severity != "note"]
    new = [issue for issue in own if (issue.code, issue.module) not in known]
    unfit = any(issue.severity == "error" for issue in new)
    return member.changed(*new, state="unfit" if unfit else "usable")


def _kind(adapter: Adapter) -> _Kind:
    shapes = {layer_pattern(path): info.shape for path, info in adapter.layout.items()}
    return _Kind(adapter.base_model, adapter.task_type, shapes)


def _usual(kinds: Sequence[_Kind]) -> _Kind:
    """The commonest base and task type, and the commonest shape of each kind of module."""
    base = _commonest(kind.base for kind in kinds)
    task = _commonest(kind.task for kind in kinds)
    counted: dict[str, Counter[tuple[int, int]]] = {}
    for kind in kinds:
        for pattern, shape in kind.shapes.items():
            counted.setdefault(pattern, Counter())[shape] += 1
    return _Kind(base, task, {p: held.most_common(1)[0][0] for p, held in counted.items()})


def _as_usual(kind: _Kind, usual: _Kind) -> bool:
    alike = (kind.base, kind.task) == (usual.base, usual.task)
    return alike and all(usual.shapes[p] == shape for p, shape in kind.shapes.items())
