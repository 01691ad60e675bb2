"""Selection: which channels are removed, from the scores of groups, their sensitivities and a budget."""
