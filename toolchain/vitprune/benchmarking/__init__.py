"""Measuring bundles against their dense models, and one measurement against another."""
