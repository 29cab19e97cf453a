"""Defaults and thresholds that several rooms read; each stands here once."""

MARGIN = 0.05  # the gain that matters, unless --margin sets another
RETENTION = 0.8  # the share of a specialist's gain that one model has to keep (--retention)
LIKELY_FROM = 0.9  # the probability from which a forecast counts as a call of `likely`
KNOWN = 0.5  # a lower bound of a hop's accuracy from which the hop counts as known
UNKNOWN = 0.2  # an upper bound of a hop's accuracy below which the hop counts as unknown
