"""The experiments: they build worlds, evaluate systems, and write a page each."""
