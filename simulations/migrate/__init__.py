"""A run on another base: what is asked, how it is done, what is left of the gain."""
