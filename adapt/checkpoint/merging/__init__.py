"""Dense checkpoints from sparse ones: experts merged to one feed-forward part, from which distillation goes on."""
