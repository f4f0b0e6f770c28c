"""Readers of data sets: which images a split has, where they lie and which of them match."""
