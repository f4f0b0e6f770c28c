"""python -m benchmarks.tables: recall, size and time of the models of the README, from nothing, on any images.

plan.py    which models, and the commands of main.py that make, test and time them
steps.py   runs a command whose output is either whole or not there; skips what is done
timing.py  how long it will take, by the first hundred images
report.py  two tables in Markdown and a picture, from what the steps left
"""
