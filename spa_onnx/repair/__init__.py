"""New values for the weights that survive: layer by layer, and in the order of the graph."""
