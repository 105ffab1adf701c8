"""The stages, their contract, and what several of them share."""
