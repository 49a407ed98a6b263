"""A cascade inside Triton: its Python back end runs the members that images need, and answers each by its first confident exit.

Written into a model repository as model.py by `vitprune package --triton`; the server has Triton's own module and numpy, nothing of vitprune.
The configuration's parameters name the members ("members", from the first exit on) and hold the thresholds of all exits but the last.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The rule between the members; per image and independent of batch mates."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters; called once by the server."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.members = json.loads(parameters["members"]["string_value"])
        self.thresholds = json.loads(parameters["thresholds"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._answer(pb_utils.get_input_tensor_by_name(request, "image").as_numpy()) for request in requests]

    def _answer(self, images: Any) -> Any:
        logits: Any = None
        exits = np.zeros(len(images), np.int64)
        rows, feeds = np.arange(len(images)), {"image": images}
        for number, member in enumerate(self.members, start=1):
            if not len(rows):
                break
            given, error = self._run(member, feeds)
            if error is not None:
                return pb_utils.InferenceResponse(output_tensors=[], error=error)
            own = given.pop("logits")
            logits = np.empty((len(images), own.shape[1]), own.dtype) if logits is None else logits
            done = np.ones(len(own), bool) if number == len(self.members) else fires(own, self.thresholds[number - 1])
            logits[rows[done]], exits[rows[done]] = own[done], number
            rows = rows[~done]
            feeds = {"image": feeds["image"][~done], **{name: value[~done] for name, value in given.items()}}
        tensors = [pb_utils.Tensor("logits", logits), pb_utils.Tensor("exit", exits[:, None])]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _run(self, member: dict[str, Any], feeds: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Outputs by name of a member, and the error it ended with, or None."""
        call = pb_utils.InferenceRequest(
            model_name=member["name"],
            requested_output_names=member["outputs"],
            inputs=[pb_utils.Tensor(name, np.ascontiguousarray(feeds[name])) for name in member["inputs"]],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        answer = call.exec()
        if answer.has_error():
            return {}, pb_utils.TritonError(answer.error().message())
        return {name: pb_utils.get_output_tensor_by_name(answer, name).as_numpy() for name in member["outputs"]}, None


def fires(logits: Any, threshold: float | None) -> Any:
    """Which images [B] an exit answers: the largest softmax probability, in double precision, reaches the threshold; null never does."""
    wide = logits.astype(np.float64)
    certainty = 1.0 / np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    return np.zeros(len(wide), bool) if threshold is None else certainty >= threshold
