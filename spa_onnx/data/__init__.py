"""Samples to calibrate on: the ones that the user gives, or synthetic ones."""
