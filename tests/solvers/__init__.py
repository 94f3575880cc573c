"""Mirror of vijax/solvers."""
