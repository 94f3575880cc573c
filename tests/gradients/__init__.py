"""Mirror of vijax/gradients."""
