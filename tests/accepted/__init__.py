"""What is accepted and what is refused: a large grid of calls, traced only, beside a record."""
