"""Which of torch's operators are taken apart into simpler ones: as few as can be, since tables know most as they are.

An operator that no table knows may be one that torch itself makes of others, forwards and backwards, as `a & b` is
`bitwise_and`; these stand in its place. What is known, or registered by somebody, always stays.
"""

from typing import Any

from interop.trace.ops.table import find

__all__ = ["operator_name", "take_apart", "unknown_composites"]


def take_apart(torch: Any, exported: Any) -> Any:
    """The program in torch's functional form, without the unknown operators that torch makes of others: of what that
    makes some may be such again."""
    exported = exported.run_decompositions(_decompositions(torch, exported.graph))
    met: set[Any] = set()
    while found := unknown_composites(torch, exported.graph) - met:
        known = torch.export.default_decompositions()
        met |= found
        exported = exported.run_decompositions({target: known[target] for target in met if target in known})
    return exported


def unknown_composites(torch: Any, graph: Any) -> set[Any]:
    """The operators without a JAX counterpart for which torch has no code, forwards or backwards: it calls others."""
    targets = {node.target for node in graph.nodes if hasattr(node.target, "_schema")}
    unknown = (target for target in targets if find(operator_name(target)) is None)
    implicit = torch._C._dispatch_has_kernel_for_dispatch_key
    return {target for target in unknown if implicit(target.name(), "CompositeImplicitAutograd")}


def _decompositions(torch: Any, graph: Any) -> dict[Any, Any]:
    """Operators to be replaced by simpler ones: instance norm, where it would change its buffers without saying so."""
    norm = torch.ops.aten.instance_norm.default
    calls = [node.args for node in graph.nodes if node.target is norm]
    if any(mean is not None and by_input for _, _, _, mean, _, by_input, *_ in calls):
        return {norm: torch.export.default_decompositions()[norm]}
    return {}


def operator_name(target: Any) -> str:
    """ "aten.relu.default" for torch's operators; the bare name for Python's."""
    text = str(target)
    return text if hasattr(target, "_schema") else getattr(target, "__name__", text)
