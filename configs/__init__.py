"""Typed, frozen scenarios and the YAML files that hold only differences from their defaults."""
