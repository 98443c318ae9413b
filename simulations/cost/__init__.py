"""What aggregation costs a server: seconds against users, and memory where releases stream."""
