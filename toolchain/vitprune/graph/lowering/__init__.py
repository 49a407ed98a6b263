"""Variants of a bundle's graph for the runtimes that need one."""
