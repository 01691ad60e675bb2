"""Statistics of layer inputs: first and second moments on calibration data or synthetic samples, in bounded memory."""
