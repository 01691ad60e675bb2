"""Channels removed from a graph: the plan, the masked model, the pruned model."""
