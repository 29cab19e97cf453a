"""The rule after evaluation, examined: how often `likely` and `unlikely` are wrong, and how often
it abstains. Exact for one comparison (`exact`), simulated for several systems (`simulated`)."""
