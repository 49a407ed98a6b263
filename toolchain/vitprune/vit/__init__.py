"""What a Vision Transformer is, and the PyTorch blocks of the reference."""
