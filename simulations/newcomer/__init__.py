"""A new user's start: ways to begin, over how many examples they have, beside what needs no federation."""
