"""Models of the MATLAB release of NetVLAD: what is in their files, and what it becomes here."""
