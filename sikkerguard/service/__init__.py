"""The running service: loops that own their state, and what they are made of."""
