"""What is done beside the stages: studies, swapped files, checks, parameter counts."""
