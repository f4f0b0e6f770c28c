"""The server: answers over HTTP where images were taken.

app.py           The server's routes
batching.py      Images of several requests that wait at the same time are described together, by one thread
conditional.py   Requests that want an answer only if it is another one than they have
decoders.py      processes that decode images: one that hangs or dies is replaced
decoding.py      one image of unknown origin -> pixels, in a process of its own
docs_page.py     The page at /docs: what the server answers to, without scripts and without a network
guard.py         What every request passes first: whose it is, from where, and what goes back whatever happens
image_routes.py  Routes of the database's images: to see, add and remove them, and their places
keeping.py       Images that are added to the database by requests: their names, places and files
metrics.py       What the server counts, in Prometheus's text format
page.py          The page at /, made of the same parts as the report: where was this image taken?
page_routes.py   Routes of the page at / and of its files; they need no token
places.py        The places of a database's images, for a map
problems.py      what a client is told that asks for something wrong
protocol.py      HTTP as uvicorn speaks it, but slow and idle clients are not waited for, and errors are JSON
questions.py     A request's parameters -> what is asked, and the answer -> JSON
room.py          Memory that requests may take together
schemas.py       What answers look like, for the description at /openapi.json and the clients that are made of it
server.py        Starts and stops the server
service.py       What requests share: decoders, the queue before the model, and limits
settings.py      How the server behaves; the command line knows nothing else of it
uploads.py       requests' bodies, read within limits of size and time
"""
