"""Repair: new values for the weights that are kept, layer by layer and then in the order of the graph."""
