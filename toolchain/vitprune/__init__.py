"""vitprune: token-pruned Vision Transformers from PyTorch to ONNX and TensorRT."""

__version__ = "0.1.0"
