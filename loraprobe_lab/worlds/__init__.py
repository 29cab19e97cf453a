"""Worlds: which base, which adapters and which tasks, as functions of a seed."""
