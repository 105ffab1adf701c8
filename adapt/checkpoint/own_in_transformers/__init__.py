"""Files that are copied into exports, where transformers runs them without this package: each imports only the one beside it."""
