"""Which images there are, where they were taken, and what matches; images decoded ahead.

layouts/        Readers of data sets: which images a split has, where they lie and which of them match
positions/      Where images were taken: from names, tables and EXIF, in one UTM zone, and what cannot be meant
catalogue.py    each data set in one entry: its specs or folders, tolerance, protocol
frames.py       Frames: images that are consecutive frames, found from folders and the numbers in file names
image_files.py  Which files of a folder are images: by their ending, and those without one by their first bytes
images.py       One image file -> RGB: decoding, EXIF orientation, resizing
names.py        names that are the same but for Unicode's form, slashes or blanks
own_folders.py  Folders of own images that nobody has sorted into splits: what in them serves, and how they are told
places.py       Stage 1, places: which spec belongs to a dataset's split, and where its images lie
protocol.py     The protocol label: what a recall was measured on and by which rule, in one line that travels with it
reader.py       Many image files -> batches by size, decoded ahead of the model by threads or processes
regions.py      A region left out of the database: its queries ask for places that are not in the map
videos.py       A video file -> image files of its frames, by OpenCV, which is not needed for anything else here
settings.py     Which places a command is about; imports nothing heavy, since `--help` reads its flags
"""
