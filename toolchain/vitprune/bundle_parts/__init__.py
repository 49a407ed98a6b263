"""What bundles are made of: the manifest, and where they are put."""
