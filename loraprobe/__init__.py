"""Tells whether composing LoRA adapters will work for a task, why, and what to do instead."""

