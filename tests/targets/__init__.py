"""Mirror of vijax/targets."""
