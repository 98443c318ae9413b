"""A federation over machines: keys and certificates, the processes of a server and of a node, and what the world may reach."""
