"""What one command leaves for the next, each with what made it."""
