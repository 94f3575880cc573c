"""Mirror of vijax/diagnostics."""
