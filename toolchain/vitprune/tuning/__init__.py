"""Searching methods and settings for a budget: `vitprune tune` (docs/tuning.md)."""
