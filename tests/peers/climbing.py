"""A training loop of the least: what several peers' suites run their optimizers by."""

import jax


def climb(rule, params, steps, seed=0):
    """Run a rule for so many steps in one scan; return the last params."""
    state = rule.init(params)
    keys = jax.random.split(jax.random.key(seed), steps)
    run = jax.jit(
        lambda state: jax.lax.scan(lambda s, k: (rule.step(k, s)[0], None), state, keys)[0]
    )
    return rule.params(run(state))
