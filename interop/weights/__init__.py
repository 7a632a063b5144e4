"""One network's weights: its leaves here, its tensors in torchvision and timm, and the way between them. NumPy only."""
