"""Samples to calibrate on: read from what the user gives, or made up."""
