"""Synthetic samples, for calibration without data."""
