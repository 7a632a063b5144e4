"""Values that remember how they lie: whatever the order, torch's shapes and numbers come out."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from interop.trace.graph import Graph, Node, Placeholder, Ref, nodes_for
from interop.trace.values import Value, align, from_torch_order, permute, reshape, squeeze, to_torch_order, unsqueeze


@st.composite
def values(draw):
    """(a value in a random order, the same in torch's order), both NumPy's: JAX would compile for every shape."""
    shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=5))
    array = np.arange(int(np.prod(shape))).reshape(shape)
    order = tuple(draw(st.permutations(range(len(shape)))))
    return Value(array.transpose(order), order), array


def divisors(n):
    return [k for k in range(1, n + 1) if n % k == 0]


@given(values())
def test_the_logical_array_is_torchs(pair):
    value, array = pair
    assert value.shape == array.shape
    np.testing.assert_array_equal(to_torch_order(value), array)


@given(values(), st.data())
def test_reshape_is_numpys(pair, data):
    value, array = pair
    shape, left = [], array.size
    for _ in range(data.draw(st.integers(0, 4))):
        shape.append(data.draw(st.sampled_from(divisors(left))))
        left //= shape[-1]
    shape.append(data.draw(st.sampled_from([left, -1])))
    np.testing.assert_array_equal(to_torch_order(reshape(value, shape)), array.reshape(shape))


def test_reshape_moves_nothing_where_it_need_not():
    """[N, C, H, W] that lies channels last, flattened over its pixels, still does."""
    value = Value(jnp.zeros((2, 5, 7, 3)), (0, 2, 3, 1))
    assert reshape(value, (2, 3, 35)).order == (0, 2, 1)
    assert reshape(value, (2, 3, 5, 7)).order == value.order
    assert reshape(value, (2, 105)).order == (0, 1)  # C·H·W doesn't lie so: moved


@given(values(), st.data())
def test_permute_unsqueeze_and_squeeze_are_numpys(pair, data):
    value, array = pair
    axes = data.draw(st.permutations(range(array.ndim)))
    np.testing.assert_array_equal(to_torch_order(permute(value, axes)), array.transpose(axes))
    axis = data.draw(st.integers(-array.ndim - 1, array.ndim))
    np.testing.assert_array_equal(to_torch_order(unsqueeze(value, axis)), np.expand_dims(array, axis))
    np.testing.assert_array_equal(to_torch_order(squeeze(value, range(array.ndim))), array.squeeze())


@given(values(), st.data())
def test_operands_meet_as_numpy_broadcasts(pair, data):
    value, array = pair
    shape = [data.draw(st.sampled_from([1, n])) for n in array.shape[data.draw(st.integers(0, array.ndim)) :]]
    other = np.arange(int(np.prod(shape))).reshape(shape)
    order = tuple(data.draw(st.permutations(range(other.ndim))))
    arrays, common = align([value, Value(other.transpose(order), order)])
    np.testing.assert_array_equal(to_torch_order(Value(arrays[0] + arrays[1], common)), array + other)


def test_only_what_is_needed_runs():
    nodes = tuple(Node(name, "aten.relu.default", (Ref(source),), {}, "") for name, source in ("ax", "bx", "ca"))
    graph = Graph({"x": Placeholder("input", "")}, nodes, Ref("c"), {"early": Ref("a")}, {}, {})
    assert [node.name for node in nodes_for(graph, [graph.hidden["early"]])] == ["a"]
    assert [node.name for node in nodes_for(graph, [Ref("c")])] == ["a", "c"]
    assert from_torch_order(np.ones(())).order == ()
