"""Names of the operators that stand for parts of a site in domain `vitprune`: what graphs are marked with and what lowerings put there.

The native library has the same names (plugins/src); nothing is imported for them.
"""

from __future__ import annotations

PRUNE_SITE = "PruneSite"
TOKEN_HALT = "TokenHalt"
SAMPLED_MERGE = "SampledMerge"
PAIR_MERGE = "PairMerge"
WARD_MERGE = "WardMerge"
TOKEN_PREDICTOR = "TokenPredictor"
COLUMN_SCORE = "ColumnScore"
SKETCH_PRODUCTS = "SketchProducts"
KEY_BIAS_ATTENTION = "KeyBiasAttention"  # no part of a site: the attention behind one, with one value for every key
# Those that TensorRT can have as a plugin in the place of a whole site.
PLUGIN_SITES = (PRUNE_SITE, PAIR_MERGE, WARD_MERGE, SAMPLED_MERGE)
