"""Which channels go: scores of groups, what they mean for the outputs, and how many each group loses."""
