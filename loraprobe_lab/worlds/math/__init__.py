"""Word problems with known steps: adapters learn new verbs, the target combines them."""
