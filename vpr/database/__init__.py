"""What is known of each database image, and how it is found again.

milvus/            A collection of Milvus as the database
additions.py       What may go into an index beside what it has: images of other names, with metres of one UTM zone
columns.py         Further columns of a folder's table, which travel with its images: weather, season, camera,
engine.py          What the program asks of a search engine, whichever keeps the descriptors
engine_recall.py   How much of the exact search an engine finds, and how long a query takes
engines.py         The engines by name, and which is meant; without torch, for the command line
faiss_engine.py    the engine faiss: a store's descriptors, searched exactly or by an index of FAISS
filters.py         searches of a part: around a point, in a box, by a column of the table
flat_files.py      Flat files of a store, to which one process at a time appends
folder.py          Image files by their content: what is new in a folder, what changed, what only moved
index_files.py     indexes that FAISS made of a store's rows, which can be thrown away
location.py        where the index of a folder lies beside a model
open.py            open, update, edit or fill the engine that is wanted
records.py         What an index knows of its images: name, file, content, place, and the columns of their table
searched_rows.py   Exact search among some rows of descriptors
store.py           what is known of a database's images: a commit makes a row real
stored_images.py   Images of a store by row: those of a commit, and how they are added and removed
stored_records.py  records of a store's rows, each column read when it is first asked for
synchronise.py     Bring an engine to what a folder holds now, describing only what it has never seen
table.py           Rows of a store's table of images, and what they are for the rest of the program
"""
