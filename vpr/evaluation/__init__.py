"""Recall@N, what came of each query, what a model costs, comparisons, explanations."""
