"""Calibration without training: settings of a method for a budget, and padded capacities, from a set of images."""
