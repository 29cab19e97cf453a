"""The thresholds of decisions, and the numbers of items that are asked; each is defined here once.

Constants of a computation (steps of a grid, draws, sizes of a search) are defined where it is done.
"""

# The verdict.
ALPHA = 0.05  # the chance of a wrong decision, both sides together
MARGIN = 0.05  # --margin: the smallest gain that is worth composing for
MARGIN_STEP = 0.01  # between two margins that a report names
RETENTION = 0.8  # --retention: the share of a specialist's gain that one model has to keep
KNOWN = 0.5  # a hop is known if the lower bound of its accuracy reaches this
UNKNOWN = 0.2  # a hop is unknown if the upper bound of its accuracy lies below this
TIES_OF_NOISE = 2.0  # margins: the largest difference that is noise unless it is shown to be real
CHAIN_WORTH = 2.0  # a chain scores this many times what one call scores, to be worth its calls
CONTENDS = 2.0  # standard errors beyond which a system no longer contends to be the best
COMPRESSION_LIMIT = 0.1  # the share of its delta that a composition may lose to its rank
FAMILIAR = 2 / 3  # the base would choose at least this share of an adapter's tokens itself
UNFAMILIAR = 1 / 3  # the base would choose at most this share
FEWEST_ITEMS = 30  # of a task; with fewer, half a 95 % interval exceeds 0.18
MOST_ITEMS = 5_000  # of a task; a report asks nobody for more
TEMPLATE_SAMPLES = 5, 12, 30  # questions that choose the form of prompts: more while in doubt
TEMPLATE_ITEMS = 4  # of a task, at least: an item with hops has several questions
TEMPLATE_LEAD = 3  # more questions that one form answers right show that it is better
TEMPLATE_MATTERS = 0.2  # the difference in accuracy by the chat template that causes a warning
FEWEST_ANSWERS = 10  # of adapters, from which the base's familiarity is measured
PLAIN_TOKENS = 32  # the longest plain answer, in tokens
WORKED_TOKENS = 256  # the longest worked answer
HOPELESS = 0.1  # the probability of a gain from which no more questions are asked for
ALL_CUT = 0.9  # the share of answers cut from which the others tell nothing of these
CUT_MATTERS = 0.1  # the share of answers cut by these limits that causes a warning
SPOILED = MARGIN  # the share of gold answers that exact match may spoil: it cannot make a gain
SAID_OTHERWISE = 0.1  # the share of answers right in other words only that causes a note

# The compositions that are evaluated unless others are asked for.
DEFAULT_METHODS = "uniform", "sum"
DEFAULT_ROUTERS = ("arrow",)

# Rounds of an evaluation; a first round may show a gain, so it has the items that this takes.
FIRST_ROUND = FEWEST_ITEMS  # clusters of the first round
ROUNDS_FROM = 40  # clusters of the smallest task; with fewer there is one round

# What `inspect` asks of each task, from as many clusters as possible.
PILOT_ITEMS = FIRST_ROUND  # the base, the single adapters and the compositions answer
HOP_ITEMS = 40  # base and adapters, where hops decide: 2 right of 40 lie below UNKNOWN, 2 of 30 not
PROBED_ITEMS = 24  # the coverage probes ask the base
CEILING_ITEMS = 80  # who answered all sampled questions; a lower bound of 0.95 takes 73

# Warnings about weights.
NORM_RATIO = 3.0  # the largest ratio of two adapters' norms
OPPOSED_COSINE = -0.25  # updates with a smaller cosine cancel each other
SAME_UPDATE = 1e-6  # two updates are equal if cosine and ratio of norms differ from 1 by no more
EQUAL_COSINE = 0.95  # updates with a larger cosine are nearly the same
LARGE_UPDATE = 0.5  # the norm of an update relative to the weights that it changes
CROSS_TERMS = 0.1  # the error of averaging A and B apart, relative to the exact average
FAMILY_COSINE = 0.5  # updates with at least this cosine are of one family
SHARED_INITIALISATION = 0.5  # the mean cosine of the rows of two A
# The Frobenius norm of one module's delta. The largest module of six published GPT-2 adapters has
# 19.5, of 226 adapters of the lab 14.4; the weights of SmolLM2-135M themselves have 16 to 206.
EXTREME_NORM = 100.0

# Learned weights, and routers that are fitted to prompts.
LEARNING_STEPS = 40  # of gradient descent, each on all items that are set apart
LEARNING_BOUND = 1.5  # the largest size of a learned weight
LEARNING_SHRINK = 0.05  # the share of mean |w| in the objective
APART_SHARE = 0.25  # the share of a task's items that is set apart for weights or a router
APART_MOST = 64  # the most items that are set apart for weights
APART_LEAST = 4  # the fewest; a smaller task is refused
ROUTER_MOST = 20  # the most items of a task from which a router learns, as in the lab's table
ROUTER_LEAST = 10  # the fewest; a task has to keep FEWEST_ITEMS beside them
PROMPTS_WRITTEN = 32  # prompts that an adapter writes for a router that learns from them

LOSS = "answer_loss"  # the metric of which less is better

# Routers that choose one adapter for a whole prompt: by what the base's layers read, by its text.
BY_PROMPT, BY_TEXT = "by-prompt", "by-text"
# Other spellings of their names, the last of which older documents have.
SPELLED = {
    "text": BY_TEXT,
    "by_text": BY_TEXT,
    "by_prompt": BY_PROMPT,
    "hard:by=centroid,per=sequence": BY_PROMPT,
}
