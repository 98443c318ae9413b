"""The one-process runtime, controls, benchmarks and the command line."""
