"""What a run leaves on the disk: checkpoints, models, centroids, descriptors."""
