"""Finding the blocks of a dense ViT in ONNX and rewriting them with onnx-graphsurgeon."""
