"""A run in which somebody is not there: what is asked, how it is made, what is left of them, and what a membership test finds."""
