"""Files that are copied into exports. Transformers runs them there without this package: each imports only the others."""
