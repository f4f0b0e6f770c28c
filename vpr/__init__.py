"""Visual place recognition, one file per stage: places -> images -> descriptors -> search -> recall.

The modes of `main.py` are `cluster.py`, `train.py` and `test.py`.
"""
