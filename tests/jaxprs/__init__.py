"""Mirror of vijax/jaxprs."""
