"""Calibration samples given by the user: reading, preprocessing, and checks against the inputs of a model."""
