"""A collection of Milvus as the database."""
