"""Training of small bases from scratch and of LoRA adapters on any causal model."""
