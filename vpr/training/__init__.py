"""Weakly supervised training: mining, losses, steps, state, validation."""
