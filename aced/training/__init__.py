"""The jitted step, and what a training loop is made of."""
