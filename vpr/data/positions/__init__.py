"""Where images were taken: from names, tables and EXIF, in one UTM zone, and what cannot be meant.

coordinates.py   UTM metres and WGS 84 degrees, from one into the other
of_images.py     where own images were taken: by their name, a table, or the GPS in their EXIF
table.py         the table of positions of a folder: image,easting,northing or image,latitude,longitude
table_doubts.py  what a table says that the images do not
zones.py         Positions of many images in one UTM zone, and what cannot be the positions that the user meant
"""
