"""The `vitprune::TokenSample` op: numpy specification and ONNX function body."""
