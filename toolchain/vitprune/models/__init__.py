"""Loading timm models, weights, preprocessing and images."""
