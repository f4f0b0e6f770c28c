"""Where images were taken: from names, tables and EXIF, in one UTM zone, and what cannot be meant."""
