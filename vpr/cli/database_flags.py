"""Flags of databases that live: the index, the engine that searches it, the server that answers from it."""

from vpr.cli.argument_types import box, condition, engine, near, quantity, utm_zone, whole_number
from vpr.cli.flag import COUNT, ON, Flag

INDEX = [
    Flag("indexFile", None, "file of the database's descriptors (default: beside the model)", {"metavar": "FILE"}),
    Flag("top", 5, "matches shown for each image", COUNT),
    Flag("add", None, "also index all images under this folder, wherever it is", {"metavar": "FOLDER"}),
    Flag("remove", None, "take images out of the index, by name (path below the images' folder) or by a pattern "
         "with * or ?", {"nargs": "+", "metavar": "NAME"}),
    Flag("onDisk", False, "leave the lists of an inverted-file index (--index=IVF...) on the disk when it is "
         "searched", ON),
    Flag("near", None, "search only within METRES of a latitude and longitude",
         {"type": near, "metavar": "LAT,LON,METRES"}),
    Flag("box", None, "search only in a box of degrees; a west above the east crosses the date line",
         {"type": box, "metavar": "SOUTH,WEST,NORTH,EAST"}),
    Flag("where", None, "search only images whose row in the table has this value; also !=, >=, <=; several must "
         "all hold", {"nargs": "+", "type": condition, "metavar": "COLUMN=VALUE"}),
    Flag("json", False, "print the matches as JSON", ON),
    Flag("utmZone", None, "UTM zone of the database's metres, such as 17N, where neither images nor dataset tell",
         {"type": utm_zone, "metavar": "ZONE"}),
]  # fmt: skip

ENGINE = [
    Flag("engine", "faiss", "where descriptors are kept and searched: faiss, files beside the model; "
         "milvus:FILE.db, embedded; milvus:http://HOST:19530, a server or cluster",
         {"type": engine, "metavar": "ENGINE"}),
    Flag("collection", None, "collection of milvus (default: by the name of the database)", {"metavar": "NAME"}),
]  # fmt: skip

SERVE = [
    Flag("host", "127.0.0.1", "address to listen at; other than this machine's own only with --token"),
    Flag("port", 8000, "port to listen at; 0: any that is free", {"type": whole_number(0, 65535)}),
    Flag("token", None, "file with the word that clients have to send as 'Authorization: Bearer ...' (or in the "
         "environment: VPR_TOKEN)", {"metavar": "FILE"}),
    Flag("writable", False, "let clients add and remove images", ON),
    Flag("batchWait", 3.0, "milliseconds that a request waits at most for others", {"type": quantity}),
    Flag("queue", 64, "images that wait at most; further ones are answered 503", COUNT),
    Flag("maxMegabytes", 20.0, "size of an image file, at most", {"type": quantity}),
    Flag("tiles", None, "street map behind the page's map, which browsers load from there: osm, or the address of "
         "tiles with {z}, {x}, {y} (default: none)", {"metavar": "URL"}),
]  # fmt: skip
