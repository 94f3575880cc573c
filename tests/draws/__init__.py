"""Mirror of vijax/draws."""
