"""Scripts that a test starts on several ranks, each a process of its own; what they save is read by the test."""
