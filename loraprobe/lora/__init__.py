"""Low-rank algebra: one update, many updates of one module, and the spaces of a merge.

`lowrank` holds one update s B A as its factors; `grams` the Gram matrices of many adapters, from
which diagnostics are computed; `spaces` holds the matrices on which a merge method runs; `threads`
has the threads and buffers that work on many modules.
"""
