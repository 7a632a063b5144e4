"""From a torch.nn.Module to an Encoder: exported to a graph of plain data that JAX evaluates. See encoder.py first."""
