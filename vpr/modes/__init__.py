"""One file for each --mode: read the options, call the stages, print and write."""
