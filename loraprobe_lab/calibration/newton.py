"""Many logistic regressions at once, for choosing among terms.

The same objective as scikit-learn's LogisticRegression with an l2 penalty, by Newton's method with
halved steps, for a stack of designs that share their labels. Choosing needs thousands of fits of a
few hundred cases, of which one at a time would cost minutes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]
STEPS, HALVINGS = 60, 30
CLOSE = 1e-8  # of the gradient's largest entry, a case


def fit_many(X: Array, y: Array, strength: float) -> Array:
    """Coefficients [m, 1 + d], the intercept first, of designs X [m, n, d] with labels y [n].

    Minimises C * sum of log losses + |w|^2 / 2 with C = `strength`; the intercept is not penalised.
    """
    m, n, d = X.shape
    X1 = np.concatenate([np.ones((m, n, 1)), X], axis=2)
    penalty = np.r_[0.0, np.ones(d)]
    W = np.zeros((m, d + 1))
    loss = _loss(X1, y, W, strength)
    for _ in range(STEPS):
        p = expit(np.einsum("mnd,md->mn", X1, W))
        gradient = strength * np.einsum("mnd,mn->md", X1, p - y) + penalty * W
        if np.abs(gradient).max(initial=0.0) < CLOSE * n * strength:
            break
        curvature = strength * np.einsum("mni,mn,mnj->mij", X1, p * (1 - p), X1, optimize=True)
        curvature += np.diag(penalty + 1e-10)
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        size = np.ones(m)
        for _ in range(HALVINGS):
            tried = W - size[:, None] * step
            new = _loss(X1, y, tried, strength)
            worse = new > loss + 1e-12 * np.abs(loss)
            if not worse.any():
                break
            size[worse] /= 2
        if worse.all():
            break  # as near as rounding allows
        W, loss = np.where(worse[:, None], W, tried), np.where(worse, loss, new)
    return W


def probabilities(X: Array, W: Array) -> Array:
    """[m, n] of designs X [m, n, d] under coefficients W [m, 1 + d]."""
    return expit(W[:, :1] + np.einsum("mnd,md->mn", X, W[:, 1:]))


def _loss(X1: Array, y: Array, W: Array, strength: float) -> Array:
    logits = np.einsum("mnd,md->mn", X1, W)
    losses = np.logaddexp(0, logits) - y * logits
    return strength * losses.sum(1) + (W[:, 1:] ** 2).sum(1) / 2
