"""Training: the supervised warm start and reinforcement learning from the search reward."""
