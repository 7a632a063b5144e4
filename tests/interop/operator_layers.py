"""What to call the operators of layers with: products, convolutions, pooling, resizing, norms."""

from functools import partial

import torch
from operator_draws import image

aten = torch.ops.aten


def recurrent(d, *, gates=4, layers=1, directions=1, batch_first=False, biases=True, projected=0):
    """Of five numbers, with cells of four."""
    size, weights = projected or 4, []
    for layer in range(layers):
        inputs = 5 if layer == 0 else size * directions
        for _ in range(directions):
            weights += [d.normal(4 * gates, inputs), d.normal(4 * gates, size)]
            weights += [d.normal(4 * gates), d.normal(4 * gates)] if biases else []
            weights += [d.normal(size, 4)] if projected else []
    states = [d.normal(layers * directions, 2, size), d.normal(layers * directions, 2, 4)]
    sequence = d.normal(2, 3, 5) if batch_first else d.normal(3, 2, 5)
    first = states if gates == 4 else states[0]
    return sequence, first, weights, biases, layers, 0.0, False, directions == 2, batch_first


def cell(d, *, gates=4, biases=True):
    """One step of such a cell."""
    states = [d.normal(2, 4), d.normal(2, 4)]
    weights = [d.normal(4 * gates, 5), d.normal(4 * gates, 4), *([d.normal(4 * gates) for _ in range(2)] * biases)]
    return (d.normal(2, 5), states if gates == 4 else states[0], *weights)


def rows_that_see_nothing(d):
    """A mask by which the first three of six rows see nothing of four, the others what a coin says."""
    return torch.cat([torch.zeros(2, 1, 3, 4, dtype=torch.bool), d.bools(2, 1, 3, 4)], 2)


def infinite_there(d):
    """The same by numbers, which have a gradient."""
    return d.normal(2, 1, 6, 4).masked_fill(~rows_that_see_nothing(d), -torch.inf)


GATES = {"gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def new(d, rank, *, least=1):
    """The sizes to resize to: larger, smaller, one. `least` 2: antialiased to a width of 1, torch repeats its first row
    (2.14.1; it contradicts itself in channels_last)."""
    return [d.size(least, 12) for _ in range(rank)]


CASES = {
    "linear": (aten.linear.default, lambda d: (d.normal(2, 3, 5), d.normal(4, 5), d.normal(4))),
    "linear of a vector": (aten.linear.default, lambda d: (d.normal(2, 3, 5), d.normal(5))),
    "linear one": (aten.linear.default, lambda d: (d.normal(5), d.normal(4, 5))),
    "matmul": (aten.matmul.default, lambda d: (d.normal(2, 3, 5), d.normal(2, 5, 4))),
    "matmul matrix": (aten.matmul.default, lambda d: (d.normal(2, 3, 5), d.normal(5, 4))),
    "mm": (aten.mm.default, lambda d: (d.normal(3, 5), d.normal(5, 4))),
    "bmm": (aten.bmm.default, lambda d: (d.normal(2, 3, 5), d.normal(2, 5, 4))),
    "mv": (aten.mv.default, lambda d: (d.normal(3, 5), d.normal(5))),
    "dot": (aten.dot.default, lambda d: (d.normal(5), d.normal(5))),
    "outer": (aten.outer.default, lambda d: (d.normal(5), d.normal(4))),
    "addmm": (aten.addmm.default, lambda d: (d.normal(4), d.normal(3, 5), d.normal(5, 4)), {"beta": 0.5, "alpha": 2}),
    "baddbmm": (aten.baddbmm.default, lambda d: (d.normal(2, 3, 4), d.normal(2, 3, 5), d.normal(2, 5, 4))),
    "einsum": (
        aten.einsum.default,
        lambda d: ("b h i d, b h j d -> b h i j", [d.normal(2, 3, 4, 5), d.normal(2, 3, 6, 5)]),
    ),
    "cosine_similarity": (aten.cosine_similarity.default, lambda d: (d.normal(3, 4), d.normal(3, 4), 1)),
    "attention": (
        aten.scaled_dot_product_attention.default,
        lambda d: (d.normal(2, 3, 4, 5), d.normal(2, 3, 6, 5), d.normal(2, 3, 6, 7)),
    ),
    "attention masked": (
        aten.scaled_dot_product_attention.default,
        lambda d: (
            d.normal(2, 3, 4, 5),
            d.normal(2, 3, 4, 5),
            d.normal(2, 3, 4, 5),
            torch.ones(4, 4).tril().bool(),
            0.0,
            False,
        ),
        {"scale": 0.3},
    ),
    "attention biased": (
        aten.scaled_dot_product_attention.default,
        lambda d: (d.normal(2, 3, 4, 5), d.normal(2, 3, 4, 5), d.normal(2, 3, 4, 5), d.normal(3, 4, 4)),
    ),
    **{
        f"attention with rows that see nothing, by {kind}": (
            aten.scaled_dot_product_attention.default,
            lambda d, masked=masked: (d.normal(2, 3, 6, 5), d.normal(2, 3, 4, 5), d.normal(2, 3, 4, 7), masked(d)),
        )
        for kind, masked in {"bools": rows_that_see_nothing, "numbers": infinite_there}.items()
    },
    "attention causal longer": (
        aten.scaled_dot_product_attention.default,
        lambda d: (d.normal(2, 3, 6, 5), d.normal(2, 3, 4, 5), d.normal(2, 3, 4, 7), None, 0.0, True),
    ),
    "attention causal": (
        aten.scaled_dot_product_attention.default,
        lambda d: (d.normal(2, 3, 4, 5), d.normal(2, 3, 4, 5), d.normal(2, 3, 4, 5), None, 0.0, True),
    ),
    "conv1d": (aten.conv1d.default, lambda d: (d.normal(2, 3, 9), d.normal(4, 3, 3), d.normal(4), [2], [1])),
    "conv2d": (aten.conv2d.default, lambda d: (image(d, 3), d.normal(4, 3, 3, 3), d.normal(4), [2, 1], [1, 2])),
    "conv2d 1x1": (aten.conv2d.default, lambda d: (image(d, 3), d.normal(4, 3, 1, 1), None, [2, 2])),
    "conv2d wide": (aten.conv2d.default, lambda d: (image(d, 6, least=7), d.normal(4, 6, 5, 3), None, [1, 1], [2, 1])),
    "conv2d grouped": (
        aten.conv2d.default,
        lambda d: (image(d, 6), d.normal(4, 3, 3, 3), d.normal(4), [1, 1], [1, 1], [1, 1], 2),
    ),
    "conv2d depthwise": (
        aten.conv2d.default,
        lambda d: (image(d, 4), d.normal(8, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 4),
    ),
    "conv2d dilated": (
        aten.conv2d.default,
        lambda d: (image(d, 3), d.normal(4, 3, 3, 3), None, [1, 1], [2, 2], [2, 2]),
    ),
    "conv2d same": (aten.conv2d.padding, lambda d: (image(d, 3), d.normal(4, 3, 4, 3), None, [1, 1], "same")),
    "conv3d": (
        aten.conv3d.default,
        lambda d: (d.normal(2, 3, 4, 5, 6), d.normal(4, 3, 2, 3, 3), d.normal(4), [1, 2, 1], [0, 1, 1]),
    ),
    "conv_transpose1d": (
        aten.conv_transpose1d.default,
        lambda d: (d.normal(2, 4, 5), d.normal(4, 3, 3), d.normal(3), [2]),
    ),
    "conv_transpose2d": (
        aten.conv_transpose2d.input,
        lambda d: (image(d, 4), d.normal(4, 3, 3, 3), d.normal(6), [2, 3], [1, 0], [1, 2], 2, [1, 2]),
    ),
    "conv_transpose3d": (
        aten.conv_transpose3d.input,
        lambda d: (d.normal(1, 2, 3, 3, 3), d.normal(2, 3, 2, 2, 2), None, [2, 2, 2]),
    ),
    "im2col": (aten.im2col.default, lambda d: (image(d, 2), [3, 2], [1, 2], [1, 0], [2, 1])),
    "col2im": (aten.col2im.default, lambda d: (d.normal(2, 12, 16), [5, 5], [2, 2], [1, 1], [0, 0], [1, 1])),
    "max_pool1d": (aten.max_pool1d.default, lambda d: (d.normal(2, 3, 9), [3], [2], [1])),
    "max_pool2d": (aten.max_pool2d.default, lambda d: (image(d), [3, 3], [2, 2], [1, 1])),
    "max_pool2d oblong": (aten.max_pool2d.default, lambda d: (image(d), [3, 2], [2, 1], [1, 0])),
    "max_pool2d ceil": (aten.max_pool2d.default, lambda d: (image(d), [3, 3], [2, 2], [0, 0], [1, 1], True)),
    "max_pool2d dilated": (aten.max_pool2d.default, lambda d: (image(d, least=7), [3, 3], [1, 1], [1, 1], [2, 2])),
    "max_pool3d": (aten.max_pool3d.default, lambda d: (d.normal(2, 2, 4, 5, 6), [2, 2, 2])),
    "avg_pool1d": (aten.avg_pool1d.default, lambda d: (d.normal(2, 3, 9), [3], [2], [1])),
    "avg_pool2d": (aten.avg_pool2d.default, lambda d: (image(d), [3, 3], [2, 2], [1, 1])),
    "avg_pool2d ceil": (aten.avg_pool2d.default, lambda d: (image(d), [3, 2], [2, 2], [1, 0], True)),
    "avg_pool2d uncounted": (aten.avg_pool2d.default, lambda d: (image(d), [3, 3], [2, 2], [1, 1], True, False)),
    "avg_pool2d divisor": (aten.avg_pool2d.default, lambda d: (image(d), [3, 3], [1, 1], [0, 0], False, True, 5)),
    "avg_pool3d": (aten.avg_pool3d.default, lambda d: (d.normal(2, 2, 4, 5, 6), [2, 2, 2])),
    "adaptive_avg_pool1d": (aten.adaptive_avg_pool1d.default, lambda d: (d.normal(2, 3, 7), [3])),
    "adaptive_avg_pool2d": (aten.adaptive_avg_pool2d.default, lambda d: (image(d), [3, 4])),
    "adaptive_avg_pool2d 1": (aten.adaptive_avg_pool2d.default, lambda d: (image(d), [1, 1])),
    "adaptive_avg_pool3d": (aten.adaptive_avg_pool3d.default, lambda d: (d.normal(2, 2, 4, 5, 6), [2, 3, 1])),
    "adaptive_max_pool2d": (aten.adaptive_max_pool2d.default, lambda d: (image(d), [3, 4])),
    "pad": (aten.pad.default, lambda d: (image(d), [1, 2, 0, 3], "constant", 0.5)),
    "pad negative": (aten.constant_pad_nd.default, lambda d: (image(d), [-1, 2, 1, -1])),
    "pad reflect": (aten.pad.default, lambda d: (image(d), [1, 2, 3, 0], "reflect")),
    "pad replicate": (aten.pad.default, lambda d: (image(d), [1, 2, 3, 0], "replicate")),
    "pad circular": (aten.pad.default, lambda d: (image(d), [1, 2, 3, 0], "circular")),
    **{
        f"pad {mode} negative": (aten.pad.default, lambda d, mode=mode: (image(d), [-2, 3, 2, -1], mode))
        for mode in ("reflect", "replicate", "circular")
    },
    "reflection_pad2d": (aten.reflection_pad2d.default, lambda d: (image(d), [1, 2, 3, 0])),
    "replication_pad1d": (aten.replication_pad1d.default, lambda d: (d.normal(2, 3, 4), [1, 2])),
    "nearest": (aten.upsample_nearest2d.vec, lambda d: (image(d), new(d, 2), None)),
    "nearest scale": (aten.upsample_nearest2d.vec, lambda d: (image(d), None, [2.0, 1.5])),
    "nearest exact": (aten._upsample_nearest_exact2d.vec, lambda d: (image(d), new(d, 2), None)),
    "linear1d": (aten.upsample_linear1d.vec, lambda d: (d.normal(2, 3, 7), new(d, 1), False, None)),
    "bilinear": (aten.upsample_bilinear2d.vec, lambda d: (image(d), new(d, 2), False, None)),
    "bilinear corners": (aten.upsample_bilinear2d.vec, lambda d: (image(d), new(d, 2), True, None)),
    "bilinear corners to one": (aten.upsample_bilinear2d.vec, lambda d: (image(d), [1, 1], True, None)),
    "bicubic corners to one": (aten.upsample_bicubic2d.vec, lambda d: (image(d), [1, 3], True, None)),
    "bilinear scale": (aten.upsample_bilinear2d.vec, lambda d: (image(d), None, False, [2.0, 1.6])),
    "bicubic": (aten.upsample_bicubic2d.vec, lambda d: (image(d), new(d, 2), False, None)),
    "bicubic corners": (aten.upsample_bicubic2d.vec, lambda d: (image(d), new(d, 2), True, None)),
    "bilinear antialias": (aten._upsample_bilinear2d_aa.vec, lambda d: (image(d), new(d, 2, least=2), False, None)),
    **{
        f"grid {mode} {padding}{' corners' * align}": (
            aten.grid_sampler.default,
            lambda d, options=(i, j, bool(align)): (d.normal(2, 3, 6, 7), d.normal(2, 4, 5, 2), *options),
        )
        for i, mode in enumerate(("bilinear", "nearest", "bicubic"))
        for j, padding in enumerate(("zeros", "border", "reflection"))
        for align in (0, 1)
    },
    "grid of one pixel": (
        aten.grid_sampler_2d.default,
        lambda d: (d.normal(2, 3, 1, 1), d.normal(2, 4, 5, 2), 0, 2, True),
    ),
    **{
        f"grid of a volume {mode}": (
            aten.grid_sampler.default,
            lambda d, i=i: (d.normal(2, 2, 4, 5, 6), d.normal(2, 3, 4, 2, 3), i, 2, False),
        )
        for i, mode in enumerate(("bilinear", "nearest"))
    },
    "affine grid": (aten.affine_grid_generator.default, lambda d: (d.normal(2, 2, 3), [2, 3, 4, 5], False)),
    "affine grid corners": (aten.affine_grid_generator.default, lambda d: (d.normal(2, 2, 3), [2, 3, 4, 1], True)),
    "affine grid of a volume": (
        aten.affine_grid_generator.default,
        lambda d: (d.normal(2, 3, 4), [2, 3, 4, 5, 2], False),
    ),
    "bilinear antialias corners": (
        aten._upsample_bilinear2d_aa.vec,
        lambda d: (image(d), new(d, 2, least=2), True, None),
    ),
    "bilinear antialias corners to one": (
        aten._upsample_bilinear2d_aa.vec,
        lambda d: (image(d), [1, 5], True, None),
    ),
    "bicubic antialias corners to one": (aten._upsample_bicubic2d_aa.vec, lambda d: (image(d), [1, 3], True, None)),
    "bicubic antialias": (aten._upsample_bicubic2d_aa.vec, lambda d: (image(d), new(d, 2, least=2), False, None)),
    "batch norm": (
        aten._native_batch_norm_legit_functional.default,
        lambda d: (image(d, 3), d.normal(3), d.normal(3), d.fixed(3), d.fixed(3), True, 0.1, 1e-5),
    ),
    "batch norm eval": (
        aten._native_batch_norm_legit_no_training.default,
        lambda d: (image(d, 3), d.normal(3), d.normal(3), d.fixed(3), d.fixed(3), 0.1, 1e-5),
    ),
    "instance norm": (
        aten.instance_norm.default,
        lambda d: (image(d, 3), d.normal(3), d.normal(3), None, None, True, 0.1, 1e-5, False),
    ),
    "layer norm": (aten.layer_norm.default, lambda d: (d.normal(2, 3, 4, 5), [4, 5], d.normal(4, 5), d.normal(4, 5))),
    "native layer norm": (aten.native_layer_norm.default, lambda d: (d.normal(2, 3, 5), [5], d.normal(5), None, 1e-6)),
    "rms norm": (aten.rms_norm.default, lambda d: (d.normal(2, 3, 5), [5], d.normal(5), 1e-6)),
    "group norm": (aten.group_norm.default, lambda d: (image(d, 6), 3, d.normal(6), d.normal(6), 1e-5)),
    "weight norm": (aten._weight_norm.default, lambda d: (d.normal(4, 3, 2), d.positive(4, 1, 1), 0)),
    "weight norm last": (aten._weight_norm.default, lambda d: (d.normal(4, 3, 2), d.positive(1, 1, 2), 2)),
    "weight norm of all": (aten._weight_norm.default, lambda d: (d.normal(4, 3, 2), d.positive(), -1)),
    "batch norm without statistics": (
        aten._native_batch_norm_legit.no_stats,
        lambda d: (image(d, 3), d.normal(3), d.normal(3), True, 0.1, 1e-5),
    ),
    "native group norm": (
        aten.native_group_norm.default,
        lambda d: (d.normal(2, 6, 4, 5), d.normal(6), d.normal(6), 2, 6, 20, 3, 1e-5),
    ),
    "fused rms norm": (aten._fused_rms_norm.default, lambda d: (d.normal(2, 3, 5), [5], d.normal(5), 1e-6)),
    "weight norm interface": (
        aten._weight_norm_interface.default,
        lambda d: (d.normal(4, 3, 2), d.positive(4, 1, 1), 0),
    ),
    "_log_softmax": (aten._log_softmax.default, lambda d: (image(d), 1, False)),
    "_prelu_kernel": (aten._prelu_kernel.default, lambda d: (d.normal(2, 3, 4), d.normal(1, 3, 1))),
    "convolution": (
        aten.convolution.default,
        lambda d: (image(d, 3), d.normal(4, 3, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    "convolution transposed": (
        aten.convolution.default,
        lambda d: (image(d, 4), d.normal(4, 3, 3, 3), d.normal(3), [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    ),
    **{
        f"lstm {name}": (aten.lstm.input, partial(recurrent, **options))
        for name, options in {
            "once": {},
            "both ways, twice, batch first": {"layers": 2, "directions": 2, "batch_first": True},
            "without biases, projected": {"biases": False, "projected": 3},
        }.items()
    },
    **{
        f"{kind} {name}": (getattr(aten, kind).input, partial(recurrent, gates=gates, **options))
        for kind, gates in GATES.items()
        for name, options in {"both ways, twice": {"layers": 2, "directions": 2}, "alone": {"biases": False}}.items()
    },
    **{
        f"{kind}_cell": (getattr(aten, f"{kind}_cell").default, partial(cell, gates=gates))
        for kind, gates in GATES.items()
    },
    "lstm_cell": (aten.lstm_cell.default, cell),
    "lstm_cell without biases": (aten.lstm_cell.default, partial(cell, biases=False)),
    "glu": (aten.glu.default, lambda d: (d.normal(2, 6, 3, 4), 1)),
    "matrix_exp": (aten.matrix_exp.default, lambda d: (d.normal(2, 4, 4),)),
    "householder": (aten.linalg_householder_product.default, lambda d: (d.normal(2, 5, 3), d.normal(2, 3))),
    "solve": (aten._linalg_solve_ex.default, lambda d: (d.normal(2, 3, 3), d.normal(2, 3, 4))),
    "solve from the right": (
        aten._linalg_solve_ex.default,
        lambda d: (d.normal(3, 3), d.normal(4, 3)),
        {"left": False},
    ),
    "_adaptive_avg_pool2d": (aten._adaptive_avg_pool2d.default, lambda d: (image(d), [3, 4])),
    "_adaptive_avg_pool3d": (aten._adaptive_avg_pool3d.default, lambda d: (d.normal(2, 2, 4, 5, 6), [2, 3, 1])),
    "adaptive_max_pool1d": (aten.adaptive_max_pool1d.default, lambda d: (d.normal(2, 3, 7), [3])),
    "adaptive_max_pool3d": (aten.adaptive_max_pool3d.default, lambda d: (d.normal(2, 2, 4, 5, 6), [2, 3, 1])),
    "max_pool2d_with_indices": (aten.max_pool2d_with_indices.default, lambda d: (image(d), [3, 3], [2, 2], [1, 1])),
    "max_pool3d_with_indices": (aten.max_pool3d_with_indices.default, lambda d: (d.normal(2, 2, 4, 5, 6), [2, 2, 2])),
    "reflection_pad1d": (aten.reflection_pad1d.default, lambda d: (d.normal(2, 3, 4), [1, 2])),
    "reflection_pad3d": (aten.reflection_pad3d.default, lambda d: (d.normal(2, 2, 4, 5, 6), [1, 2, 0, 1, 2, 1])),
    "replication_pad2d": (aten.replication_pad2d.default, lambda d: (image(d), [1, 2, 3, 0])),
    "replication_pad3d": (aten.replication_pad3d.default, lambda d: (d.normal(2, 2, 4, 5, 6), [1, 2, 0, 1, 2, 1])),
    "nearest 1d": (aten.upsample_nearest1d.vec, lambda d: (d.normal(2, 3, 7), new(d, 1), None)),
    "nearest 3d": (aten.upsample_nearest3d.vec, lambda d: (d.normal(2, 2, 4, 5, 6), new(d, 3), None)),
    "nearest exact 1d": (aten._upsample_nearest_exact1d.vec, lambda d: (d.normal(2, 3, 7), new(d, 1), None)),
    "nearest exact 3d": (aten._upsample_nearest_exact3d.vec, lambda d: (d.normal(2, 2, 4, 5, 6), new(d, 3), None)),
    "trilinear": (aten.upsample_trilinear3d.vec, lambda d: (d.normal(2, 2, 4, 5, 6), new(d, 3), False, None)),
}
"""Name of the case → (torch's operator, arguments from a `Draw`, keyword arguments)."""
