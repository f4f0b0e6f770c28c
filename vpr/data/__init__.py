"""Which images there are, where they were taken, and what matches; images decoded ahead."""
