"""Protocols with numbers comparable to published tables, and the controls that give such a number its meaning.

knn.py, linear.py and linear_sgd.py score frozen features, finetune.py trains the network itself; interval.py says how
sure an accuracy is; collapse.py and components.py look at features without labels, and so do three pure functions of
byol_jax/metrics.py; controls.py has the baseline and the table of several features beside each other, scores.py every
accuracy beside its protocol; extract.py gets features out of a network.
"""

from byol_jax.evaluate.collapse import CollapseResult, collapse
from byol_jax.evaluate.components import PrincipalComponents, principal_components
from byol_jax.evaluate.controls import compare, raw_pixels
from byol_jax.evaluate.extract import extract, extract_batches
from byol_jax.evaluate.finetune import FinetuneResult, finetune, label_subset
from byol_jax.evaluate.interval import bootstrap_interval, confusion_matrix
from byol_jax.evaluate.knn import KNNResult, knn
from byol_jax.evaluate.linear import LinearProbeResult, linear_probe
from byol_jax.evaluate.linear_sgd import LinearSGDResult, linear_sgd
from byol_jax.evaluate.logistic import LogisticFit, fit_logistic
from byol_jax.metrics import alignment, effective_rank, uniformity

__all__ = [
    "CollapseResult",
    "FinetuneResult",
    "KNNResult",
    "LinearProbeResult",
    "LinearSGDResult",
    "LogisticFit",
    "PrincipalComponents",
    "alignment",
    "bootstrap_interval",
    "collapse",
    "compare",
    "confusion_matrix",
    "effective_rank",
    "extract",
    "extract_batches",
    "finetune",
    "fit_logistic",
    "knn",
    "label_subset",
    "linear_probe",
    "linear_sgd",
    "principal_components",
    "raw_pixels",
    "uniformity",
]
