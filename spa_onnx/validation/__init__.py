"""Checks: the pruned model computes what the masked model computes, and its distance from the original."""
