"""Faults injected into decision services; every module has `run(scale)` and a command line."""
