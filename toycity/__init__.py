"""A procedurally drawn toy city: a small stand-in for Pittsburgh that needs no download.

camera.py      A pinhole camera among vertical walls: which wall, at what depth and height, each pixel shows
city.py        A quarter of the toy city: its houses as vertical walls, their textures in one atlas, trees and lamps
conditions.py  When and with what a query was photographed: light, exposure, colour cast, lens, noise, compression
facades.py     Facade textures: what a house looks like from the street, drawn once per wall
light.py       Daylight, evening, dusk and night: the colours of sun and sky, and who stands in whose shadow
render.py      Turns what a camera sees into light: sky, ground, facades, then trees, lamps and vehicles in front
sheet.py       A contact sheet of the toy city: queries beside database images of the same places
sprites.py     Cut-outs for street furniture and for what gets in the way: trees, lamps, cars, vans, pedestrians
streets.py     The street plan of one quarter: avenues crossing streets, gently bent, and what their ground looks like
traffic.py     What gets in the way of a picture: parked and passing vehicles, pedestrians and tree trunks
viewpoints.py  Where pictures are taken: the survey's panoramas, and queries near them that show something
writer.py      Writes the toy city in Pittsburgh's layout: JPEGs, query JPEGs and one dbStruct `.mat` per split
"""

from toycity.conditions import Difficulty
from toycity.sheet import contact_sheet
from toycity.writer import SEED, VERSION, is_current, make_toy_city

__all__ = ["SEED", "VERSION", "Difficulty", "contact_sheet", "is_current", "make_toy_city"]
