"""The states of Adam, AdamW and SGD between optax and torch.optim. `state.py` has the two public calls."""
