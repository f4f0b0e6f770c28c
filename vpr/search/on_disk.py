ENDINGS = (".faiss", ".lists")


def build_on_disk(*a):
    raise NotImplementedError


def open_on_disk(*a):
    raise NotImplementedError


def search_with_rows(index, queries, count, rows):
    if rows is None:
        d, i = index.search(queries, count)
        return d, i
    import faiss

    d, i = index.search(queries, count, params=faiss.SearchParameters(sel=faiss.IDSelectorBatch(rows)))
    return d, i
