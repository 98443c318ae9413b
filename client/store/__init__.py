"""The parts of a node's store: files, keys, manifests, backups, and how a user is forgotten. `client.private` is its door."""
