"""python -m benchmarks.tables: recall, size and time of the models of the README, from nothing, on any images.

models.py    the rows of both tables, and the networks with their weights files
plan.py      the commands of main.py that make and measure them
steps.py     runs a command whose output counts when it is whole; skips what is done
estimate.py  image size and epochs by the number of images; how long all of it takes, by the first hundred
report.py    two tables in Markdown and a picture, from what the steps left
"""
