"""Collected only where PyTorch isn't installed: .ci/run and .ci/lanes make such environments and run this folder."""

import importlib.util

collect_ignore = ["test_without_torch.py"] if importlib.util.find_spec("torch") else []
