"""Places to train on: groups of images that show the same; and a loss of these.

clustering.py  places from positions: the images around chosen spots
cliques.py     hard batches of places: such as look alike, and are not the same
headings.py    where images look, by their names, and in which of some sectors
multi_similarity.py  the multi-similarity loss of images by place, and which pairs it mines
place_set.py   what a training on batches of places takes: images by place
tables.py      places as others give them: GSV-Cities' tables, and a folder for each place
walk.py        places without positions: neighbours in time, grown by agreement
"""
