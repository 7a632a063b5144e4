"""Networks of torchvision and timm, traced and compared; `python -m benchmarks.torch_modules` measures row by row."""
