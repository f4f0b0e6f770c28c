"""Readers of data sets: which images a split has, where they lie and which of them match.

columns.py     columns of a data set's table, as text
folders.py     Own images without a spec (--dataset=folder): positions from file names, a table, or the images' GPS
msls.py        Mapillary Street-Level Sequences (Warburg et al., CVPR 2020): tables and images by city
numbered.py    Places without positions: films of one route (Nordland) and pairs of images (SPED, AmsterTime)
readers.py     The data sets that have no .mat files: from the folders of a split to its places
spec_files.py  Where the images of a spec lie: the first of a data set's folders that has most of them
"""
