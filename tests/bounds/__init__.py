"""Mirror of vijax/bounds."""
