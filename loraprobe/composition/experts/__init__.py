"""The kinds of expert, one file each: low-rank, scaled (DoRA), and whole parameters.

An adapter can be of several kinds at once: its factors, the magnitudes beside them and the modules
that were trained whole each find their file here.
"""
