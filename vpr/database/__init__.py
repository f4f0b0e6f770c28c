"""What is known of each database image, and how it is found again.

milvus/            a collection of Milvus as the database
store/             images, records and descriptors in files: SQLite, and flat files beside it
additions.py       What may go into an index beside what it has: images of other names, with metres of one UTM zone
columns.py         Further columns of a folder's table, which travel with its images: weather, season, camera,
engine.py          What the program asks of a search engine, whichever keeps the descriptors
engine_recall.py   How much of the exact search an engine finds, and how long a query takes
engines.py         The engines by name, and which is meant; without torch, for the command line
faiss_engine.py    the engine faiss: a store's descriptors, searched exactly or by an index of FAISS
filters.py         searches of a part: around a point, in a box, by a column of the table
folder.py          Image files by their content: what is new in a folder, what changed, what only moved
location.py        where the index of a folder lies beside a model
open.py            open, update, edit or fill the engine that is wanted
records.py         What an index knows of its images: name, file, content, position, and the columns of their table
synchronise.py     Bring an engine to what a folder holds now, describing only what it has never seen
"""
