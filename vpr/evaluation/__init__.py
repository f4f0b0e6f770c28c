"""Recall@N, what came of each query, what a model costs, comparisons, explanations.

calibrate.py          Learning from queries whose truth is known how sure an answer is
calibration_error.py  whether probabilities are what happens: expected calibration error
certainty.py          how well a score of answers tells right first hits from wrong ones
comparison.py         Several models on one split: recall against size, arithmetic and time
evaluate.py           Recall@N of a model on a split: describe, search, count, record
explanation.py        which cluster owns each region of an image, and what it adds to a similarity
judging.py            how sure a test's answers are
outcomes.py           what came of each query: its first hits, which are right, how far off; Recall@N
precision_recall.py   precision and recall of answers over a threshold of their score
"""
