"""Corrections of what one user's model says: learnt and kept at home, applied for the user alone, and never in training."""
