"""Mirror of vijax/sequences."""
