"""Forms that exporters and optimisers give to a ViT, written as the plain one that the anatomy reads; one form a file."""
