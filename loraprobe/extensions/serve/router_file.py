"""router.json as the front reads it; `loraprobe.text_profile` says what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from loraprobe.errors import AdapterError
from loraprobe.text_profile import (
    FILE,
    FRAME,
    FRAME_WEIGHT,
    LONGEST,
    READ,
    SHORTEST,
    VERSION,
    TextProfile,
)
from loraprobe.untrusted import first_problem, read_json

LARGEST = 200_000_000  # bytes of such a file
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Adapter(BaseModel):
    name: str = Field(min_length=1)
    folder: str
    sha256: str


class RouterFile(BaseModel):
    """router.json as it is read."""

    format: Literal["router by text"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    adapters: list[_Adapter] = Field(min_length=1)
    base: str | None
    shortest: Annotated[int, Field(ge=SHORTEST, le=SHORTEST)]
    longest: Annotated[int, Field(ge=LONGEST, le=LONGEST)]
    frame: Annotated[int, Field(ge=FRAME, le=FRAME)] = FRAME  # version 1 has no n-grams of words
    frame_weight: Annotated[int, Field(ge=FRAME_WEIGHT, le=FRAME_WEIGHT)] = FRAME_WEIGHT
    read: Annotated[int, Field(ge=READ, le=READ)]
    unseen: Annotated[Number, Field(gt=0)]
    thresholds: list[Number]
    ngrams: dict[str, list[Number]]

    @model_validator(mode="after")
    def _fits(self) -> RouterFile:
        n = len(self.adapters)
        names = [one.name for one in self.adapters]
        if len({*names}) < n:
            raise ValueError("two adapters have one name")
        if len(self.thresholds) != n:
            raise ValueError(f"{len(self.thresholds)} thresholds for {n} adapters")
        wrong = next((gram for gram, row in self.ngrams.items() if len(row) != n + 1), None)
        if wrong is not None:
            raise ValueError(f"the n-gram {wrong!r} has not {n + 1} weights")
        return self

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in their order."""
        return [one.name for one in self.adapters]

    @property
    def profile(self) -> TextProfile:
        """What chooses among the adapters."""
        rows = {gram: tuple(row) for gram, row in self.ngrams.items()}
        return TextProfile(rows, self.unseen, tuple(self.thresholds), self.version)


def read_router(place: str | Path) -> RouterFile:
    """The router of a file, or of a directory that `route -o` wrote.

    Raises AdapterError, naming the file, where there is none, where it is damaged, and where a
    newer loraprobe wrote it.
    """
    file = Path(place)
    file = file / FILE if file.is_dir() or not file.exists() else file
    if not file.is_file():
        raise AdapterError(
            f"{place} holds no {FILE}; loraprobe route ADAPTER ADAPTER --router=by-text --base=DIR "
            "-o DIR writes one."
        )
    document = read_json(file, str(file), AdapterError, LARGEST)
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise AdapterError(
            f"{file} is of version {version}, and this loraprobe reads {VERSION}; update loraprobe."
        )
    try:
        return RouterFile.model_validate(document)
    except ValidationError as error:
        raise AdapterError(
            f"{file} is damaged ({first_problem(error)}); route the adapters again."
        ) from None
