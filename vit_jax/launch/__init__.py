"""Process-wide settings and launchers."""
