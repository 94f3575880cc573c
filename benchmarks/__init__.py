"""Benchmarks of vijax beside hand-written JAX and its peers: `python -m benchmarks NAME [--quick] [--json PATH]`."""
