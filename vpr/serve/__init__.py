"""The server: answers over HTTP where images were taken.

app.py           the routes; errors as JSON
batching.py      images of several requests that wait at the same time are described together, by one thread
decoders.py      processes that decode images: one that hangs or dies is replaced
decoding.py      one image of unknown origin -> pixels, in a process of its own
guard.py         what every request passes first: whose it is, from where, and the headers of all answers
image_routes.py  routes of the database's images: to see, add and remove them, and their positions
keeping.py       images that are added to the database by requests: their names, positions and files
page.py          the page at /, made of the same parts as the report
                 (page.html, page.css; page.js, answer.js, client.js)
problems.py      what a client is told that asks for something wrong
schemas.py       what requests ask and what answers look like, in Python, as JSON, and for /openapi.json
server.py        starts and stops the server, and waits for no slow or idle client
service.py       what requests share: decoders, the queue before the model, limits, and what is counted
sessions.py      sessions of cameras by name, whose frames are taken one after the other
settings.py      how the server behaves
uploads.py       requests' bodies, read within limits of size, time and memory
"""
