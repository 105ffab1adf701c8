"""Answering over HTTP: rows of requests in, batches to one thread that owns the predictor, labels out."""
