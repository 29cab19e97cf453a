"""The theory of composing fact edits, shown in numbers on one trained layer.

The setting is that of arXiv 2506.13479: the MLP of a layer stores facts as key -> value, a fact is
changed by a rank-one update, and the sum of the updates for A -> B and B -> C does not answer
A -> C, because the second key holds what the prompt lacks. `fact_store` reads the layer, `edits` is
the algebra, `hops` and `capacity` are the experiments, `run` runs them and makes the page.
"""
