"""Small helpers without knowledge of models, graphs or bundles."""
