"""A collection of Milvus as the database.

collection.py  A collection of Milvus with descriptors of one model: made, opened, checked, read, searched
connection.py  a connection to Milvus: a file or a server, a bounded number of tries
engine.py      Milvus as a search engine: Milvus Lite in a file, or a server; the same code for both
rows.py        Images of an index as rows of a Milvus collection, the rows of an engine, and filters as expressions
"""
