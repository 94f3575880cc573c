"""Laws that every function of vijax is held to, and a mirror of its folders; `oracles` and `table` are shared."""
