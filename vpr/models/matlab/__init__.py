"""Models of the MATLAB release of NetVLAD: what is in their files, and what it becomes here.

backbone.py  The convolutions, ReLUs, poolings and LRN of a MATLAB network -> a backbone of this program
file.py      A MATLAB file of a NetVLAD model (Arandjelovic et al.) as plain Python values, whatever its form
layers.py    What a layer of a MATLAB network does, and its values, checked
network.py   The layers of a MATLAB NetVLAD model (Arandjelovic et al.) -> a model of this program
"""
