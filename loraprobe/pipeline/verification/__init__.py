"""Whether a directory is what its card says: it is made again from the card and compared.

`command` makes it again and compares the files, `locating` finds the sources and the base,
`rounding` tells rounding from another adapter, and `peft_skeleton` loads the directory in peft.
docs/verify.md says what a passed verification guarantees.
"""
