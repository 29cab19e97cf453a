"""The kinds of expert, one file each: low-rank, scaled (DoRA) and full (whole parameters).

One adapter can be of several kinds.
"""
