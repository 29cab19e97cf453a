"""Worlds: base, adapters and tasks as functions of a seed."""
