"""A traced network beside its module: both run on the same input, their numbers compared.

verify                what is compared, how often, and what is said of a difference
torch_run, jax_run    a run of either side
distances             how far apart the two are, and what is allowed
"""
