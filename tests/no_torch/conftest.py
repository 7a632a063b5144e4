"""Collected only where PyTorch isn't installed: .ci/run makes such an environment and runs this folder in it."""

import importlib.util

collect_ignore = ["test_without_torch.py"] if importlib.util.find_spec("torch") else []
