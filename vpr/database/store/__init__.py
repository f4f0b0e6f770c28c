"""Images, records and descriptors of a database in files: SQLite, and flat files beside it.

flat_files.py      flat files of a store, to which one process at a time appends
index_files.py     indexes that FAISS made of a store's rows, which can be thrown away
searched_rows.py   exact search among some rows of descriptors
sqlite_file.py     the table of a store: one process writes, any number read meanwhile
store.py           what is known of a database's images: a commit makes a row real
stored_images.py   images of a store by row: those of a commit, and how they are added and removed
stored_records.py  records of a store's rows, each column read when it is first asked for
table.py           rows of the table of images, and what they are for the rest of the program
"""
