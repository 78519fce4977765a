"""The train state, the one step and the one loop."""
