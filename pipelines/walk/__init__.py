"""Walking the stages: their order, the checks before the first, rounds, and what is said at the end."""
