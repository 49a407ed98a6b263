"""Graph passes, one file each: what must be true before, the rewrite, what must be true after."""
