"""A procedurally drawn toy city: a small stand-in for Pittsburgh that needs no download.

Three quarters (train, val, test) of textured houses along streets, photographed all around from surveyed
positions in daylight (the database) and by passers-by in any light (the queries).
"""

from toycity.conditions import Difficulty
from toycity.sheet import contact_sheet
from toycity.writer import SEED, VERSION, is_current, make_toy_city

__all__ = ["SEED", "VERSION", "Difficulty", "contact_sheet", "is_current", "make_toy_city"]
