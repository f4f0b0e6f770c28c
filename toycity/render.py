"""Turns what a camera sees into light: sky, ground, facades, then trees, lamps and vehicles in front.

While under work a picture is [3, rows, width] and colours of N pixels are [3, N]: channels first keeps
numpy's inner loops long.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from toycity.camera import GROUND, LAYERS, Camera, Hits, cast_rays, visible_layers
from toycity.city import MIP_LEVELS, Quarter
from toycity.facades import TEXELS_PER_METRE
from toycity.light import Light, shadow_height
from toycity.sprites import SPRITE_SIZES, sprite
from toycity.streets import ground_albedo

SUPERSAMPLING = 2
NEAREST = 2.5  # metres; a cut-out any nearer would fill the view
FURNITURE_SIGHT = 48.0  # metres; further trees would be a few pixels


@dataclass(frozen=True)
class Billboard:
    """A flat cut-out that faces the camera: what it is, its look, and the local position [2] of its foot.

    Vehicles have a `direction` [2] and show their side or their front.
    """

    kind: str
    variant: int
    position: np.ndarray
    direction: np.ndarray | None = None

    def sprite_kind(self, camera: Camera) -> str:
        """Which sprite the camera sees."""
        if self.direction is None or self.kind not in ("car", "van"):
            return self.kind
        sight = self.position - camera.position
        lengthwise = abs(float(sight @ self.direction)) / float(np.hypot(*sight))
        return f"{self.kind}_front" if lengthwise > 0.75 else f"{self.kind}_side"


def render(quarter: Quarter, camera: Camera, light: Light, billboards: list[Billboard]) -> np.ndarray:
    """Picture of the quarter as linear light [rows, width, 3] float32, not yet exposed."""
    fine = camera.enlarged(SUPERSAMPLING)
    hits = cast_rays(quarter.walls, fine)
    layer = visible_layers(hits, quarter.walls, fine)
    picture = _sky(fine, light)
    depth = np.full(layer.shape, np.inf, np.float32)
    _paint_ground(picture, quarter, fine, light, layer)
    _paint_walls(picture, depth, quarter, fine, light, layer, hits)
    standing = [Billboard(piece.kind, piece.variant, piece.position) for piece in quarter.furniture]
    _paint_billboards(picture, depth, fine, light, standing + billboards)
    rows, width = camera.rows, camera.width
    grouped = picture.reshape(3, rows, SUPERSAMPLING, width, SUPERSAMPLING)
    steps = range(SUPERSAMPLING)
    averaged = sum(grouped[:, :, down, :, across] for down in steps for across in steps) / SUPERSAMPLING**2
    return np.ascontiguousarray(np.transpose(averaged, (1, 2, 0)))


def _sky(camera: Camera, light: Light) -> np.ndarray:
    """Horizon to zenith with a few soft clouds fixed to the compass: [3, rows, width]."""
    up = (camera.horizon_row - np.arange(camera.rows) - 0.5) / camera.focal
    share = (np.clip(up / 0.9, 0, 1) ** 0.7).astype(np.float32)
    gradient = _colour(light.horizon) + share * (_colour(light.zenith) - _colour(light.horizon))  # [3, rows]
    across = np.linspace(-0.5, 0.5, camera.width) * camera.field_of_view + camera.heading
    waves = np.sin(6 * up + 2)[:, None] * np.sin(3 * across + 1) + np.sin(11 * up)[:, None] * np.sin(7 * across)
    cloud = np.maximum(waves, 0).astype(np.float32) * np.float32(0.25 * light.clouds)  # [rows, width]
    white = np.float32(1.15) * gradient.max(axis=0) - gradient
    return gradient[..., None] + cloud * white[..., None]


def _paint_ground(picture: np.ndarray, quarter: Quarter, camera: Camera, light: Light, layer: np.ndarray) -> None:
    below = (np.arange(camera.rows) + 0.5 - camera.horizon_row).astype(np.float32)
    rays, position = camera.rays(), camera.position.astype(np.float32)
    pixels = np.flatnonzero(layer == GROUND)  # [N]
    rows, columns = np.divmod(pixels.astype(np.int32), np.int32(camera.width))
    depths = np.float32(camera.focal * camera.height) / below[rows]  # [N]
    local = position + depths[:, None] * rays.take(columns, axis=0)  # [N, 2]
    footprint = depths * depths / np.float32(camera.focal * camera.height)
    albedo = ground_albedo(quarter.plan, local, np.minimum(footprint, 3.0)) ** 2  # [3, N]
    received = _colour(light.ambient)
    if max(light.sun) > 0:
        sunlit = np.clip(1.0 - 2.0 * shadow_height(quarter, light, local), 0, 1)
        received = received + sunlit * np.float32(np.sin(light.elevation)) * _colour(light.sun)
    picture.reshape(3, -1)[:, pixels] = _hazed(albedo * received, depths, light)


def _paint_walls(
    picture: np.ndarray,
    depth: np.ndarray,
    quarter: Quarter,
    camera: Camera,
    light: Light,
    layer: np.ndarray,
    hits: Hits,
) -> None:
    slopes = ((camera.horizon_row - 0.5 - np.arange(camera.rows)) / camera.focal).astype(np.float32)
    texture_columns = _texture_columns(quarter, camera, hits)
    lambert, shadow_tops = _wall_light(quarter, camera, light, hits)  # [LAYERS, width] each
    pixels = np.flatnonzero((layer >= 0) & (layer < LAYERS))  # [N]
    rows, columns = np.divmod(pixels.astype(np.int32), np.int32(camera.width))
    hit = layer.reshape(-1)[pixels].astype(np.int32) * camera.width + columns  # into [LAYERS * width]
    depths = hits.depths.take(hit)
    heights = np.float32(camera.height) + slopes[rows] * depths
    texels = _look_up(quarter, texture_columns, hit, heights)  # [4, N]
    # Less of the sky is seen from the foot of a house.
    received = np.clip(0.72 + 0.056 * heights, 0, 1) * _colour(light.ambient)
    if max(light.sun) > 0:
        sunlit = lambert.take(hit) * np.clip((heights - shadow_tops.take(hit)) * 1.5 + 0.5, 0, 1)
        received += sunlit * _colour(light.sun)
    colour = texels[:3] * np.float32(1 / 255)
    shade = colour * colour * received
    if light.glow > 0:
        shade += _glow(texels[3], heights, colour, light)
    picture.reshape(3, -1)[:, pixels] = _hazed(shade, depths, light)
    depth.reshape(-1)[pixels] = depths


def _glow(readiness: np.ndarray, heights: np.ndarray, colour: np.ndarray, light: Light) -> np.ndarray:
    """Warm light of lit windows and, on the lowest storeys, of the street lamps: [3, N]."""
    lit = np.clip((readiness * np.float32(1 / 255) - np.float32(1 - light.lit_share)) * 12, 0, 1)
    lamps = 0.3 * np.exp(heights * np.float32(-0.25))
    warm = np.float32(light.glow) * _colour((1.0, 0.78, 0.47))
    return (lit * (colour + np.float32(0.35)) + lamps * colour) * warm


def _texture_columns(quarter: Quarter, camera: Camera, hits: Hits) -> tuple[np.ndarray, ...]:
    """Where in the atlas each hit's texture column starts, its step per row, rows, and rows per metre.

    All [LAYERS, width], at the mip level that matches a pixel's size on the wall.
    """
    textures = quarter.walls.textures[hits.walls]  # [LAYERS, width]
    rays = camera.rays()
    facing = np.abs((quarter.walls.normals[hits.walls] * rays).sum(axis=2)) / np.linalg.norm(rays, axis=1)
    # Along a wall seen at a slant a pixel covers more than it does upwards: meet in the middle.
    size = np.where(np.isfinite(hits.depths), hits.depths, 1) * np.float32(TEXELS_PER_METRE / camera.focal)
    level = np.log2(size / np.sqrt(np.clip(facing, 0.08, 1))).round()
    level = np.clip(level, 0, MIP_LEVELS - 1).astype(np.int32)
    atlas = quarter.atlas
    rows, columns = atlas.rows[textures, level], atlas.columns[textures, level]
    start = atlas.offsets[textures, level] + (hits.along * columns).astype(np.int32)
    return start, columns, rows, (rows / quarter.walls.heights[hits.walls]).astype(np.float32)


def _look_up(
    quarter: Quarter, texture_columns: tuple[np.ndarray, ...], hit: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """Facade texels [4, N] uint8 of the hits [N] at these heights [N]."""
    start, step, rows, per_metre = (table.take(hit) for table in texture_columns)
    row = np.clip((heights * per_metre).astype(np.int32), 0, rows - 1)
    # One 32-bit word per texel is fetched faster than four bytes.
    words = quarter.atlas.texels.view(np.uint32)[:, 0].take(start + row * step)
    return words.view(np.uint8).reshape(-1, 4).T


def _wall_light(quarter: Quarter, camera: Camera, light: Light, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """How squarely the sun meets each hit wall, and up to which height it is shaded; both [LAYERS, width]."""
    if max(light.sun) <= 0:
        return np.zeros_like(hits.depths), np.zeros_like(hits.depths)
    normals = quarter.walls.normals[hits.walls]
    facing = np.clip(normals @ light.towards_sun.astype(np.float32), 0, 1)
    lambert = facing * np.float32(np.cos(light.elevation))
    depths = np.where(np.isfinite(hits.depths), hits.depths, 0)
    # Just outside the wall.
    points = camera.position.astype(np.float32) + depths[..., None] * camera.rays() + np.float32(0.7) * normals
    tops = shadow_height(quarter, light, points.reshape(-1, 2))
    return lambert, tops.reshape(hits.depths.shape)


def _hazed(colour: np.ndarray, depths: np.ndarray, light: Light) -> np.ndarray:
    """Blend colours [3, N] at depths [N] towards the horizon's colour."""
    haze = np.float32(0.85) * _colour(light.horizon)
    return haze + np.exp(depths * np.float32(-1 / light.haze_length)) * (colour - haze)


def _colour(values: tuple[float, float, float]) -> np.ndarray:
    """[3, 1] float32."""
    return np.array(values, np.float32)[:, None]


def _paint_billboards(
    picture: np.ndarray, depth: np.ndarray, camera: Camera, light: Light, billboards: list[Billboard]
) -> None:
    """Paint cut-outs from far to near, hidden by nearer walls."""
    ahead = [(float((each.position - camera.position) @ camera.forward), each) for each in billboards]
    for distance, billboard in sorted(ahead, key=lambda pair: -pair[0]):
        if NEAREST < distance < FURNITURE_SIGHT:
            _paint_billboard(picture, depth, camera, light, billboard)


def _paint_billboard(
    picture: np.ndarray, depth: np.ndarray, camera: Camera, light: Light, billboard: Billboard
) -> None:
    column, foot, distance = camera.project(billboard.position, 0.0)
    kind = billboard.sprite_kind(camera)
    width, height = (size * camera.focal / distance for size in SPRITE_SIZES[kind])
    left, top = column - width / 2, foot - height
    first_column, last_column = max(0, round(left)), min(camera.width, round(left + width))
    first_row, last_row = max(0, round(top)), min(camera.rows, round(foot))
    if last_column - first_column < 1 or last_row - first_row < 1:
        return
    if depth[first_row:last_row, first_column:last_column].max() < distance:
        return
    image = sprite(kind, billboard.variant)
    across, down = image.width / width, image.height / height
    box = (
        max(0.0, (first_column - left) * across), max(0.0, (first_row - top) * down),
        min(image.width, (last_column - left) * across), min(image.height, (last_row - top) * down),
    )  # fmt: skip
    size = (last_column - first_column, last_row - first_row)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box)).reshape(-1, 4).T  # [4, N]
    cut = pixels * np.float32(1 / 255)
    plain = cut[:3] / np.maximum(cut[3], np.float32(0.01))  # the sprite is premultiplied
    window = (slice(None), slice(first_row, last_row), slice(first_column, last_column))
    hidden = depth[window[1:]].reshape(-1) <= distance
    opaque = np.where(hidden, 0, cut[3])
    colour = plain * plain * (_colour(light.ambient) + np.float32(0.45) * _colour(light.sun))
    if billboard.kind == "lamp" and light.glow > 0:
        colour = np.where(plain.min(axis=0) > 0.85, _colour((1.6, 1.2, 0.7)), colour)
    behind = picture[window].reshape(3, -1)
    blended = behind + opaque * (_hazed(colour, np.float32(distance), light) - behind)
    picture[window] = blended.reshape(3, *size[::-1])
