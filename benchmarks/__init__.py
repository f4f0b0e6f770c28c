"""Measurements of this project's fast code against the plain textbook way of doing the same."""
