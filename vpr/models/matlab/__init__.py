"""Models of the MATLAB release of NetVLAD: what is in their files, and what it becomes here.

file.py     a MATLAB file of a NetVLAD model (Arandjelovic et al.) as plain Python values
network.py  its layers, checked -> a model of this program
"""
