"""The nodes and weights of Gauss-Hermite quadrature."""

import numpy as np

# With more, float64 holds no weight of the outermost: 0, or nan.
_MOST = 370


def hermite(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights for the weight e^(-e²/2)."""
    if nodes > _MOST:
        raise ValueError(
            f"nodes must be at most {_MOST} for each number, where their weights leave float64, and "
            f"{_MOST // 2 - 1} for an error, which takes twice as many and one; got {nodes}."
        )
    return np.polynomial.hermite_e.hermegauss(nodes)
