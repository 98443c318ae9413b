"""A study file: methods x data x privacy x seeds, each cell a run of its own, laid side by side under one protocol."""
