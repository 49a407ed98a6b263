"""Proof that a bundle does what its PyTorch reference does, with gates and an exit code."""
