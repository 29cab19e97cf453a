"""The thresholds of a screen, and the numbers of items that it asks; each is defined here once."""

# The screen of a library.
KEEP = 8  # --keep: sets of adapters that are composed and proved
SCREENING_ITEMS = 40  # --items: of each task, by which sets of a library are chosen
ALONE_LEAST = 20  # of these, the fewest that adapters answer alone; sums of sets answer the others
TRIED = 4  # sets whose sum is tried for each set that is proved
BEST_SINGLES = 3  # the best single adapters, which are proved too
SCREENING_SHARE = 0.6  # of --budget, that the adapters alone may take
TEMPLATE_ADAPTERS = 8  # by which the form of the prompts is chosen
SURELY_DIFFERENT = 2.0  # standard errors by which an adapter is better than the base
BETTER_THAN_MEMBER = 0.02  # by which a pair has to exceed both members, or comes after all that do
BETTER_THAN_PAIR = 0.1  # by which a set of three has to exceed the best pair in it
DISTINCT_ANSWERS = 0.7  # below this share of distinct right answers, one item's fits another's

# Skills together (--own); examples/together has the measurement.
GATES = 0.125, 0.25, 0.5, 0.75  # at which an adapter is asked alone, beside 1
LEAST_GAIN = 0.15  # over the base; with less an adapter has no skill of which to keep a share
FORECAST_ERROR = 0.25  # standard deviation of retentions around forecasts, beside that of the items
ALONE_ERROR = 0.3  # the same where no merge of the adapter was measured
KINSHIP, KINSHIP_ERROR = 2.0, 1.0  # how much of what partners have alike counts, before any pair
GROUPS = 5  # groups that are told

# Libraries of adapters.
COPY_COSINE = 1 - 1e-5  # of one update at two scales; a cast to bf16 costs 2e-6 of it
COPY_RATIO = 1.005  # the largest ratio of the norms of one update at one scale
FEWEST_NORMS = 5  # from which an extreme norm is told
OUTLIER_DEVIATIONS = 3.5  # robust standard deviations of a norm's logarithm from the median
