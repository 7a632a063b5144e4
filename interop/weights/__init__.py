"""One network's weights: its leaves in JAX, its tensors in torchvision and timm, and the way between. NumPy only.

Read `names.py` first.

    names, packing                    a leaf's name and layout in torch; the one tensor that is three leaves here
    state_dict, writeback             variables to a state dict and back; variables into a live module
    architectures, transformers       networks by name: which keys they have, of which shapes
    mismatch                          all that differs between two sets of arrays, in one message
    values                            NaN, infinity, variances below zero: what no trained network has
"""
