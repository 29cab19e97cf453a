"""A library of adapters: reading many, and how they relate to each other.

reading      references, also of files and of standard input -> members that were read once, each
             with its sketch; what cannot be used is named and never ends the run; what was read is
             stored
sketches     random projections of an adapter, from which the cosine of every pair is estimated
comparing    which members fit together, or fit the base; the record of the library: members that
             are the same update, groups that point the same way, outliers, positions on a map
effects      which adapters add most to what the base makes of prompts
"""

from loraprobe.library.comparing import ComparedLibrary, commonest_base, compare_members, mark_unfit
from loraprobe.library.reading import Member, expand_references, read_library
