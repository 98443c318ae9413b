"""What runs on the node that keeps users: model, adapters, data, training, release."""
