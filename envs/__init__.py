"""The simulated worlds."""
