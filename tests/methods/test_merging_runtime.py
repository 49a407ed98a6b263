"""The graph specialised for ONNX Runtime's CPU kernels keeps what merging needs: log(size) is a bias, not a mask."""

import merging_support as support
import numpy as np
import pytest
from merging_support import Graph

from vitprune.backends.onnxruntime import result_names
from vitprune.graph.lowering.onnxruntime import specialise

PRUNE = {
    "tome": {"method": "tome", "r": [9, 0, 5, 4], "trace": True},
    "tome_noprop": {"method": "tome", "r": [9, 0, 5, 4], "prop_attn": False},
    "tome_threshold": {"method": "tome_threshold", "tau": [0.95, 0.9, 0.7, 0.5], "r_max": [6, 6, 5, 4]},
    "ats_merge": {"method": "ats_merge", "stages": [0, 1, 2, 3], "num_samples": [40, 24, None, 12]},
}


@pytest.mark.parametrize("name", PRUNE)
@pytest.mark.parametrize("batch", ["1:4:8", "1"])
def test_specialised_graph_agrees(name, batch):
    graph = Graph(support.small_dense(), support.recipe(PRUNE[name], batch=batch))
    special, facts = specialise(graph.model, keep_outputs=True)
    assert facts["attention"] == 4
    runner = support.session(special)
    for size in (1, 3) if batch != "1" else (1,):
        x = support.images(size)
        logits, kept, _ = graph(x)
        found = runner.run(result_names(runner), {"image": x.numpy()})
        np.testing.assert_allclose(found[0], logits, atol=1e-4, rtol=0)
        for ours, theirs in zip(found[1:], kept, strict=True):
            np.testing.assert_array_equal(ours, theirs)
