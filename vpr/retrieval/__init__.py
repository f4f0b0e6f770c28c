"""From images to answers: the same code for test, locate, serve and Python.

ask                 what is asked of an image, and why it may have no answer
locator             a model and a database that answer
model_pass          descriptors of images in memory
ranking             the stages behind descriptors: search, re-rank, say how sure, answer
split               the database of a split, for test and compare
local_descriptors   of database images, kept or computed, for re-ranking
rerank, matching    hits ordered anew by matches of local descriptors
answer_features     what an answer shows of how sure it is
calibration, calibration_file   from that to a probability
answer              matches with positions, and their lines and JSON
long_work           work that pauses for shorter work
"""
