"""Mirror of vijax/families."""
