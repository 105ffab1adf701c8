"""Sparse checkpoints from dense ones: experts are copies of the feed-forward part, and answers stay what they were."""
