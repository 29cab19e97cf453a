"""The kinds of expert that are more than s B A: scaled (DoRA), full (whole parameters), parameters.

One adapter can be of several kinds. Low-rank experts are those of `composition/layers.py`.
"""
