"""Controlled worlds with known answers: small bases, adapters and tasks built from a seed."""
