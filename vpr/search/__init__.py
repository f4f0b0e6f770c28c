"""Nearest database descriptors, exact and approximate, by each data set's protocol.

approximate.py  Approximate search: a FAISS index named by its factory string (--index), and what it costs
exact.py        Exact search: the nearest database descriptors of each query, by FAISS in tiles
floats.py       Descriptors in float32, a tile at a time
limited.py      Searches that are limited to some images: by FAISS's selectors, or by asking any search for more
on_disk.py      FAISS inverted lists in a memory-mapped file, for databases larger than memory
protocols.py    Which hits count: the search protocol of each data set, and images that may not be found for a query
rules.py        By which rules a search goes along sequences; imports nothing heavy, since `--help` reads their flags
sequences.py    Search by sequences: a database image is like a query if the frames around both are alike
"""
