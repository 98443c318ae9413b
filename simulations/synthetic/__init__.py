"""A federated task whose best shared adapter is known in closed form, and what every aggregator makes of it."""
