"""Pure strategies on dictionaries of tensors: aggregators, schemes, tree helpers."""
