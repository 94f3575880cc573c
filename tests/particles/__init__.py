"""Particles against Kalman, hidden Markov chains and enumeration."""
