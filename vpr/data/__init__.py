"""Which photos there are, where they were taken, and what matches; photos decoded ahead."""
