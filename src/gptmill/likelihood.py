"""Perplexity, of any loss."""

import math
import sys

LARGEST_LOSS = math.log(sys.float_info.max)  # about 709.8 nats


def perplexity(loss: float) -> float:
    """exp of a loss in nats; of one that would overflow, as an exploding learning rate gives, the
    largest float, which JSON can hold."""
    return math.exp(min(loss, LARGEST_LOSS))
