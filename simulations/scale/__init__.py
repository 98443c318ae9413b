"""A day of a federation of very many devices, on paper: who is there when, how long rounds take, what the server carries."""
