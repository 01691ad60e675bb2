"""Channels taken out of a graph: the plan, the masked model, the pruned one."""
