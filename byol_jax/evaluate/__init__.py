"""Protocols with numbers comparable to published tables, and the controls that give such a number its meaning.

knn.py and linear.py score frozen features; collapse.py looks at features without labels; controls.py has the baseline
and the table of several features beside each other; extract.py gets features out of a network.
"""

from byol_jax.evaluate.collapse import CollapseResult, collapse
from byol_jax.evaluate.controls import compare, raw_pixels
from byol_jax.evaluate.extract import extract
from byol_jax.evaluate.knn import KNNResult, knn
from byol_jax.evaluate.linear import LinearProbeResult, linear_probe
from byol_jax.evaluate.logistic import LogisticFit, fit_logistic

__all__ = [
    "CollapseResult",
    "KNNResult",
    "LinearProbeResult",
    "LogisticFit",
    "collapse",
    "compare",
    "extract",
    "fit_logistic",
    "knn",
    "linear_probe",
    "raw_pixels",
]
