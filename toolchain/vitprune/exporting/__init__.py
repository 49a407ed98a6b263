"""From a dense model to a bundle: export, rewrite, samples, parity, and what a bundle tells."""
