"""Mirror of vijax/gaussians."""
