"""The server: answers over HTTP where images were taken."""
