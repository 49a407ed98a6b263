"""PyTorch reference: a method applied to a timm VisionTransformer, per image, for any batch."""
