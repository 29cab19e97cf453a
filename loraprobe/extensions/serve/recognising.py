"""What a server serves under a name: an adapter, scaled or not, the base, or another adapter.

The log-probability of the likeliest token after a few dozen texts is compared with what
transformers compute here with the base, the adapter and others (`compare_served`). How far the
server's own base is from the base here is its noise, from which `recognise` tells how often it
would be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy import optimize, special

from loraprobe.adapters import Adapter
from loraprobe.composition import Composition
from loraprobe.extensions.serve.acceptance import CLOSER, likeliest
from loraprobe.extensions.serve.client import ServedModel, Server, ServerError, absent
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import ModelScorer

Array = Float64[ndarray, "..."]
NEAR = 2.0  # as CLOSER, from which it is left open where the noise is not known
TELLS = 0.01  # mean difference of base and adapter from which a server's rounding is less
# An adapter may be this many times as far from itself here as the base is: its own weights are
# rounded too. Where few texts were asked, chance makes it more.
NOISIER, CHANCE = 2.0, 1e-4
WRONG = 0.01  # share of wrong decisions with the measured noise above which it is left open
DRAWS = 1000  # of the noise
SCALED = 0.1  # a scale is told that differs by more from 0 and 1
BETTER = 20.0  # an F value of 1 and some 24 degrees of freedom; chance gives it once in 6,000
SCALES = 2.0 ** np.arange(-4, 4)  # between which the best is looked for
WORDS = 8  # tokens that an adapter writes after a prompt; the text is asked after each of them
TEXTS = 48  # that are asked, those where adapters and base differ most
CANDIDATES = 8  # models that may be the base of a server which does not say so
TIMEOUT = 60.0  # seconds for one request and its whole answer

PLAIN = (  # prompts for any adapter
    "The capital of France is",
    "Once upon a time there was a",
    "Question: What is 2 + 3?\nAnswer:",
    "def add(a, b):\n    return",
    "Dear customer, thank you for",
    "The doctor looked at the patient and said",
    "In the year 1969, the first",
    "Translate to German: Good morning.\nGerman:",
    "The most important thing about",
    "He opened the door and saw",
    "1, 2, 3, 4,",
    "According to the law, a person who",
)


@dataclass(frozen=True)
class Served:
    """What a server serves under a name (`loraprobe verify --served`).

    serves: adapter; base; scaled, by `scale`; another, `other` if it is one that was given; or
    unclear. prompts: how many texts were asked. The figures are mean absolute differences of
    log-probabilities over the texts: from the server to the adapter and to the base as they run
    here, `between` these two, and `floor` from the server's base to the base here, None where the
    server has none. error_rate: how often the decision would be wrong with that noise, of DRAWS.
    """

    adapter: str
    model: str
    serves: str
    prompts: int
    to_adapter: float
    to_base: float
    between: float
    floor: float | None
    error_rate: float
    scale: float | None = None
    other: str | None = None


@dataclass(frozen=True)
class Recognised:
    """Which of the known figures a server's are: its place, None for none of them.

    wrong: the share of draws of the noise in which the same rule errs. clear: whether it is told;
    False where the noise is too large or not known. scale: of the adapter, where they are those of
    neither base nor adapter and of this scale.
    """

    place: int | None
    wrong: float
    clear: bool = True
    scale: float | None = None


def recognise(
    theirs: Array, known: Array, noise: Array | None, scaled: Callable[[float], Array]
) -> Recognised:
    """Which known figures a server's are.

    theirs: the server's log-probabilities, [n]. known: those of the base, of the adapter, and of
    others, [k, n]. noise: how far the server's base is from the base here, [n]; None where that is
    not known, and the distance to the closest stands for it. scaled: a scale -> figures with the
    adapter scaled by it, [n]; it is called where more than rounding is left.
    """
    distances = _rms(theirs - known)
    best = int(distances.argmin())
    closest = min(float(_rms(known[best] - one)) for i, one in enumerate(known) if i != best)
    close, residuals = distances[best] <= closest / CLOSER, theirs - known[best]
    scale, left = 1.0, float(distances[best])
    if left > TELLS:  # more than rounding, so it may be another scale
        scale, figures = _best_scale(theirs, scaled)
        left = float(_rms(theirs - figures))
        if left < distances[best]:
            residuals = theirs - figures
    if noise is not None:
        residuals = noise
    spread = float(_rms(residuals))
    limit = _limit(theirs.size, 0.0 if noise is None else spread)
    wrong = _wrong(known, best, residuals)
    error = 1.0 + (2.0 * theirs.size) ** -0.5  # a standard error above the measured spread
    if wrong > WRONG or limit * error >= closest:  # would hide an adapter that is not known
        return Recognised(best, wrong, clear=False)
    fits = close or distances[best] <= limit
    better = theirs.size * (distances[best] ** 2 - left**2) / max(left, TELLS / 2) ** 2 > BETTER
    told = min(abs(scale - 1.0), abs(scale)) > SCALED
    if better and told and left <= max(limit, float(_rms(known[1] - known[0])) / CLOSER):
        return Recognised(None, wrong, scale=scale)
    near = noise is None and distances[best] < closest / NEAR  # it may be noise, or may not
    return Recognised(best if fits else None, wrong, clear=fits or not near)


def _rms(differences: Array) -> Array:
    return np.sqrt(np.mean(np.square(differences), axis=-1))


def _limit(n: int, spread: float) -> float:
    """The distance up to which figures are those of one side, by the noise alone."""
    chance = float(special.fdtri(n, n, 1.0 - CHANCE)) ** 0.5
    return max(spread * max(NOISIER, chance), TELLS)


def _wrong(known: Array, best: int, residuals: Array) -> float:
    """The share of draws in which the rule would take another for `best`, or `best` for another.

    The residuals are drawn again, with either sign, onto the figures of each side in turn.
    """
    drawn = np.random.default_rng(0)
    shape = DRAWS, residuals.size
    noise = drawn.choice(residuals, shape) * drawn.choice([-1.0, 1.0], shape)
    shares = list[float]()
    for truth, figures in enumerate(known):
        theirs = np.minimum(figures + noise, 0.0)
        found = np.stack([_rms(theirs - one) for one in known]).argmin(0)
        shares.append(float(((found == best) != (truth == best)).mean()))
    return max(shares)


def _best_scale(theirs: Array, scaled: Callable[[float], Array]) -> tuple[float, Array]:
    """The scale whose figures have the smallest sum of squared differences, and these figures."""

    def left(exponent: float) -> float:
        return float(_rms(theirs - scaled(2.0**exponent)))

    start = min(np.log2(SCALES), key=left)
    options = {"xatol": 0.02, "maxiter": 10}
    found = optimize.minimize_scalar(
        left, bounds=(start - 1, start + 1), method="bounded", options=options
    )
    scale = float(2.0**found.x)
    return scale, scaled(scale)


class Texts:
    """Prompts with the beginnings of what an adapter writes after them, and their figures here.

    rows: token ids of the longest text of each prompt. texts: those that end after its last tokens,
    one a token; None where a text has other tokens.
    """

    def __init__(self, scorer: ModelScorer, adapter: Adapter, prompts: Sequence[str]) -> None:
        self.scorer = scorer
        with scorer.with_composition(single(adapter)) as composed:
            written = composed.write_all(prompts, max_new_tokens=WORDS)
        self.rows: list[list[int]] = []
        self.texts: list[list[str | None]] = []
        encoder = scorer.encoder
        for prompt, one in zip(prompts, written, strict=True):
            (ids,) = encoder.prompts([prompt])
            (whole,) = encoder.prompts([prompt + one.text])
            whole = whole if whole[: len(ids)] == ids else ids
            ends = [whole[:k] for k in range(len(ids) + 1, len(whole) + 1)]
            decoded = [encoder.tokenizer.decode(end, skip_special_tokens=True) for end in ends]
            same = [text for text in decoded if text]
            again = dict(zip(same, encoder.prompts(same), strict=True)) if same else {}
            pairs = zip(decoded, ends, strict=True)
            later = [text if again.get(text) == end else None for text, end in pairs]
            self.rows.append(whole)
            self.texts.append([prompt, *later])

    def every(self) -> list[str]:
        """The texts, in the order of the figures."""
        return [text for texts in self.texts for text in texts if text is not None]

    def figures(self, composition: Composition | None) -> Array:
        """The largest log-probability of a next token after each text; None: by the base."""
        found = list[float]()
        with self.scorer.with_composition(composition) as scorer:
            for ids, texts in zip(self.rows, self.texts, strict=True):
                figures = likeliest(scorer, ids, len(texts))
                found += [f for f, text in zip(figures, texts, strict=True) if text is not None]
        return np.array(found)


def compare_served(
    server: Server,
    model: str,
    adapter: Adapter,
    others: Sequence[Adapter],
    scorer: ModelScorer,
    prompts: Sequence[str],
) -> Served:
    """What a server serves under the name `model`.

    It may be the adapter, one of the others, or the base of the scorer. Raises ServerError where
    the server does not answer, gives no log-probabilities, or has no such name.
    """
    models = list[ServedModel]()
    with contextlib.suppress(ServerError):  # a server may list none
        models = server.models()
    texts = Texts(scorer, adapter, prompts)
    sides = [None, single(adapter), *map(single, others)]
    figures = np.stack([texts.figures(one) for one in sides])
    chosen = np.sort(np.argsort(-np.ptp(figures, axis=0), kind="stable")[:TEXTS])
    known = figures[:, chosen]
    every = texts.every()
    asked = [every[i] for i in chosen]
    try:
        theirs = np.array(server.first_tokens({"model": model}, asked))
    except ServerError as error:
        names = [one.id for one in models]
        if error.status is None or not names or model in names:
            raise
        lacking = absent(server.address, [model], models)
        raise ServerError(f"{lacking}; load it, or name one of these by --model.") from None

    def scaled(scale: float) -> Array:
        gates = ConstantGates((scale,))
        return texts.figures(Composition(adapter.name, (adapter,), gates))[chosen]

    noise = _noise(server, model, models, asked, known)
    found = recognise(theirs, known, noise, scaled)
    apart = [float(abs(theirs - one).mean()) for one in known[:2]]
    between = float(abs(known[0] - known[1]).mean())
    serves = "another"
    if between < TELLS or not found.clear:
        serves, found = "unclear", Recognised(None, found.wrong)
    elif found.scale is not None:
        serves = "scaled"
    elif found.place is not None:
        serves = ("base", "adapter", "another")[min(found.place, 2)]
    return Served(
        adapter.name,
        model,
        serves,
        len(asked),
        to_adapter=apart[1],
        to_base=apart[0],
        between=between,
        floor=None if noise is None else float(abs(noise).mean()),
        error_rate=found.wrong,
        scale=found.scale,
        other=others[found.place - 2].name if found.place and found.place > 1 else None,
    )


def _noise(
    server: Server,
    model: str,
    models: Sequence[ServedModel],
    asked: Sequence[str],
    known: Array,
) -> Array | None:
    """How far the server's base is from the base here, for each text; None where it serves none.

    The base is what the server calls the parent of `model`. Where it tells no parent, it is the
    other model that is closest to the base here, if that is closer to it than to every adapter.
    """
    names = [one.id for one in models]
    parent = next((one.parent for one in models if one.id == model), None)
    if parent in names and parent != model:
        assert parent is not None
        return np.array(server.first_tokens({"model": parent}, asked)) - known[0]
    found = list[Array]()
    for one in [one.id for one in models if not one.parent and one.id != model][:CANDIDATES]:
        with contextlib.suppress(ServerError):  # it may be no model of texts
            theirs = np.array(server.first_tokens({"model": one}, asked))
            if _rms(theirs - known).argmin() == 0:
                found.append(theirs - known[0])
    return min(found, key=_rms, default=None)
