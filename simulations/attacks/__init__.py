"""Attacks on what leaves a node without noise, and on the same with it: why data that stay at home are no privacy by themselves."""
