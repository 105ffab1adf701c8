"""A task in the forms of other evaluation programs."""
