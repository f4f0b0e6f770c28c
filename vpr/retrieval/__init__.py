"""From images to answers: the same code for test, locate, serve and Python.

conditions/           Condition means, and sessions of a camera: what images that were taken alike tell of each other
verification/         Geometric verification: do the keypoints of a query and of a hit agree with one camera's movement?
answer.py             where an image was taken: matches, their positions, how sure
answer_features.py    What an answer shows of how sure it is: numbers of its hits, from which a probability is learnt
ask.py                What is asked of an image, and why it may have no answer
calibration.py        From the features of an answer to the probability that its first hit is right
calibration_file.py   Calibrations of a model's answers: files beside the model that say what they were learnt on
local_descriptors.py  local descriptors for re-ranking: kept by an index, or computed from files
locator.py            From images to answers where they were taken: a model and a database, loaded once
long_work.py          Work of seconds, done a step at a time, so that short work gets its turn in between
matching.py           matches between two maps of local descriptors, and their scores
model_pass.py         One pass of the model for images that are in memory already
ranking.py            The stages from descriptors to answers, each a function: search, re-rank, say how sure, answer
rerank.py             Re-ranking: the first hits of a query ordered anew by their local descriptors
rules.py              How hits are re-ranked; imports nothing heavy, since `--help` reads its flags
split.py              The database of a split, searched for that split's queries as its protocol counts hits
"""
