"""Corrections on the command line: make, list and take back a user's edits, and measure what they do."""
