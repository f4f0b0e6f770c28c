"""What is known of each database image, and how it is found again."""
