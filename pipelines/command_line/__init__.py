"""The command line: composing with Hydra, and the plain parser of the commands that configure no pipeline."""
