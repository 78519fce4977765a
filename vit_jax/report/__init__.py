"""Pictures of runs and of what evaluators found."""
