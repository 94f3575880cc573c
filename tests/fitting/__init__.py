"""Mirror of vijax/fitting."""
