"""Whether the pruned model computes what the masked one does, and how far it is from the original."""
