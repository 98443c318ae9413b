"""What runs on the server: the one round loop, sampling, checkpoints, reports."""
