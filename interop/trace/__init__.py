"""From a torch.nn.Module to an Encoder: the module is exported to a graph of plain data, which JAX runs.

Read `encoder.py` first: the public function, and how all the others come together.

    export, graph                     torch's side: the module's code written down as a graph, and what a graph is
    functional, decomposition         without writes, and of operators that are known
    interpret, values, ops/           JAX's side: the graph run, arrays in a fast order of axes, one operator each
    checks                            what is refused
    verification/, fixed_draws        both frameworks compared, with nothing left to chance
    python_state, side_effects        what a module keeps in Python is refused where it is read; what is left as it was
    saved, state_dict                 a traced network in a folder; its weights by the names of the module
    modules                           torch modules by name, "timm:convnext_tiny"; nothing is traced there
"""
