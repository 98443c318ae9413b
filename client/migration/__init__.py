"""How what users and the federation have comes from one base to another: what bases show, what moves, where it is kept."""
