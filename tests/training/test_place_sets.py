"""Places of several folders in one training: which images they are, and that no batch mixes folders; walks by name."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from drawing import draw_image

import main
import vpr.training.place_batches
from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec
from vpr.training.place_batches import PlaceBatches
from vpr.training.places.cliques import hard_batches
from vpr.training.places.place_set import PlaceSet, joined
from vpr.training.rules import TrainingRules
from vpr.training.state import Position
from vpr.training.training_set import load_training_set

LOSS = "multi-similarity"
SIZES = (30, 10, 7)  # places of each set


def three_sets(apart=20.0):
    """Two sets of places along the same line, `apart` metres between two, and one without positions; three images of
    each place, numbered through."""
    starts = np.cumsum([0, *SIZES])
    return [
        PlaceSet(
            f"set{number}",
            [3 * place + np.arange(3) for place in range(starts[number], starts[number + 1])],
            np.column_stack([apart * np.arange(size), np.zeros(size)]) if number < 2 else None,
        )
        for number, size in enumerate(SIZES)
    ]


@pytest.fixture
def epochs():
    """The batches of some epochs of a training on sets of places: of each the places, by their images' numbers."""

    def make(sets, count, **rules):
        places = joined(sets)
        images = SimpleNamespace(places=SimpleNamespace(positive_radius=25.0))
        training = SimpleNamespace(images=images, places=places)
        made = PlaceBatches(TrainingRules(loss=LOSS, batch_size=4, **rules), training, source=None)
        state = SimpleNamespace(position=Position(), hard_negative_cache=np.full((4, 10), -1), model=SimpleNamespace())
        state.model.device = None
        for epoch in range(1, count + 1):
            blocks = made.batches(state, epoch)
            yield [np.unique(np.array(batch.images) // 3) for block in blocks for batch in block.batches]

    return make


def set_of(place):
    return int(np.searchsorted(np.cumsum(SIZES), place, side="right"))


def test_no_batch_mixes_sets_and_each_place_comes_once(epochs):
    for batches in epochs(three_sets(), 20):
        assert all(len({set_of(place) for place in batch}) == 1 for batch in batches)
        seen = np.concatenate(batches)
        assert len(seen) == len(set(seen.tolist())) >= sum(SIZES) - 6
        assert {set_of(place) for place in seen} == {0, 1, 2}


def test_no_batch_mixes_sets_whose_places_look_alike(epochs, monkeypatch):
    """The looks of a place are those of the places of the same number in other sets, and of none of its own."""
    sets, asked = three_sets(apart=100.0), []

    def describe(model, source, indices, *_):
        asked.append(len(indices))
        number = np.concatenate([np.arange(size) for size in SIZES])
        return np.eye(max(SIZES), dtype=np.float16)[number], set()

    monkeypatch.setattr(vpr.training.place_batches, "describe", describe)
    monkeypatch.setattr(vpr.training.place_batches, "where_it_fits", lambda rows, _: rows)
    for batches in epochs(sets, 4, hard_every=2):
        assert all(len({set_of(place) for place in batch}) == 1 for batch in batches)
    assert asked == [sum(SIZES)] * 2


def test_positions_are_compared_within_a_set_alone(epochs):
    """Places of the first two sets lie 20 m apart, wanted 45; each is on a spot of the other's. The third has none."""
    start = {0: 0, 1: SIZES[0]}
    for batches in epochs(three_sets(apart=20.0), 10):
        first = {number: [batch for batch in batches if set_of(batch[0]) == number] for number in range(3)}
        for number in (0, 1):
            for batch in first[number]:
                for one, other in itertools.combinations(batch - start[number], 2):
                    assert abs(one - other) >= 3
        assert sorted(len(batch) for batch in first[2]) == [3, 4]
        # Ten places in a row of which three may not be neighbours: a full batch is 0, 3, 6, 9 or like it.
        assert max(len(batch) for batch in first[1]) >= 2 and len(first[0]) >= 7


def test_sets_take_turns_at_random_in_proportion_to_their_places(epochs):
    begins = np.zeros(3)
    orders = set()
    for batches in epochs(three_sets(apart=1000.0), 300):
        sets = [set_of(batch[0]) for batch in batches]
        begins[sets[0]] += 1
        orders.add(tuple(sets))
    np.testing.assert_allclose(begins / 300, np.array(SIZES) / sum(SIZES), atol=0.1)
    assert len(orders) > 50


def test_alike_images_without_positions_are_all_from_spots_of_their_own(epochs, monkeypatch):
    """Each place has two images of one look and one of another: those two are taken together, or the odd one first."""
    sets, looks = [three_sets()[2]], np.eye(2, dtype=np.float16)[[0, 0, 1]]
    sets[0] = PlaceSet("plain", [each - 3 * sum(SIZES[:2]) for each in sets[0].images])
    pairs = []
    monkeypatch.setattr(
        vpr.training.place_batches, "describe", lambda m, s, indices, *_: (looks[np.array(indices) % 3], set())
    )
    monkeypatch.setattr(vpr.training.place_batches, "where_it_fits", lambda rows, _: rows)
    places, unknown = joined(sets), np.full((21, 2), np.nan)
    split = SimpleNamespace(positive_radius=25.0, database_positions=unknown, query_positions=np.empty((0, 2)))
    training = SimpleNamespace(images=SimpleNamespace(places=split), places=places)
    rules = TrainingRules(loss=LOSS, batch_size=7, hard_every=1, alike=True, images_per_place=2)
    made = PlaceBatches(rules, training, source=None)
    state = SimpleNamespace(position=Position(), hard_negative_cache=np.full((4, 10), -1), model=SimpleNamespace())
    state.model.device = None
    for epoch in range(1, 21):
        for block in made.batches(state, epoch):
            for batch in block.batches:
                pairs += [tuple(sorted(pair)) for pair in np.array(batch.images).reshape(-1, 2) % 3]
    assert set(pairs) == {(0, 1), (0, 2)}, "of equally alike images the first"
    assert np.mean([pair == (0, 1) for pair in pairs]) == pytest.approx(2 / 3, abs=0.15)


# From folders


def draw(root, names):
    for number, name in enumerate(names):
        draw_image(root / name, (8, 6), [number])


def gsv_cities(root, metres=(0, 100), city="Rome"):
    """GSV-Cities' layout: places of a city of two images each, so many metres north of 45 degrees."""
    rows, names = [], []
    for place, north in enumerate(metres):
        for heading in (10, 200):
            latitude = f"{45 + north / 111_132:.6f}"
            rows.append(f"{place},2019,5,{heading},{city},{latitude},9.5,p{heading}")
            names.append(f"Images/{city}/{city}_{place:07d}_2019_05_{heading:03d}_{latitude}_9.5_p{heading}.jpg")
    table = root / "Dataframes" / f"{city}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(["place_id,year,month,northdeg,city_id,lat,lon,panoid", *rows]))
    draw(root, names)
    return [names[at : at + 2] for at in range(0, len(names), 2)]


OWN = [["a/1.jpg", "a/2.jpg"], ["b/c/1.jpg", "b/c/2.jpg"], ["d/1.jpg", "d/2.jpg", "d/3.jpg"]]


@pytest.fixture
def load(tmp_path):
    """The training set of some folders; the data set itself is not there."""

    def training(*folders, broken=False, **rules):
        spec = PlacesSpec("folder", tmp_path / "none", skip_broken=broken)
        named = tuple(str(tmp_path / folder) for folder in folders)
        return load_training_set(
            spec, TrainingRules(**{"loss": LOSS, "images_per_place": 2, **rules}, place_folders=named)
        )

    return training


def named(training, tmp_path, folder):
    """The places of a folder by the names of their images."""
    files = [[training.images.files[image] for image in place] for place in training.places.images]
    return [
        [str(f.relative_to(tmp_path / folder)) for f in own] for own in files if tmp_path / folder in own[0].parents
    ]


def test_places_of_folders_are_those_of_each(tmp_path, load, capsys):
    city = gsv_cities(tmp_path / "city")
    draw(tmp_path / "own", [*itertools.chain(*OWN), "e/1.jpg", "alone.jpg"])
    found = load("city", "own")
    assert named(found, tmp_path, "city") == city and named(found, tmp_path, "own") == OWN
    assert found.places.sets.tolist() == [0, 0, 1, 1, 1]
    north = found.places.positions[:, 1]
    assert north[1] - north[0] == pytest.approx(100, abs=0.5) and np.isnan(found.places.positions[2:]).all()
    assert "city+own: 5 places with 11 of 13 images, the others are left out" in capsys.readouterr().out
    assert load("own").places.sets is None


def test_images_that_cannot_be_decoded_are_left_out_where_that_is_asked_for(tmp_path, load, capsys):
    draw(tmp_path / "own", itertools.chain(*OWN))
    (tmp_path / "own" / "d" / "2.jpg").write_bytes(b"no image")
    (tmp_path / "own" / "a" / "2.jpg").write_bytes(b"neither")
    found = load("own", broken=True)
    assert named(found, tmp_path, "own") == [OWN[1], ["d/1.jpg", "d/3.jpg"]]
    assert "2 of the 7 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prepare", "rules", "said"),
    [
        (lambda root: None, {}, ("own is no folder", "wanted a folder of places")),
        (lambda root: root.mkdir(), {}, ("0 images", "a folder for each place")),
        (lambda root: draw(root, OWN[0]), {}, ("own has 1 places", "add images of other places")),
        (lambda root: draw(root, itertools.chain(*OWN)), {"images_per_place": 4}, ("place of 4", "--imagesPerPlace")),
        (lambda root: gsv_cities(root, (0, 44)), {}, ("own: no two of its 2 places lie 45 m", "--placeRadius")),
        (lambda root: draw(root, itertools.chain(*OWN)), {"batch_size": 1}, ("--batchSize",)),
    ],
)  # fmt: skip
def test_folders_without_places_for_a_batch_are_refused_in_a_line(tmp_path, load, prepare, rules, said):
    """However many places another folder has."""
    draw(tmp_path / "good", [f"{place}/{image}.jpg" for place in range(9) for image in range(4)])
    prepare(tmp_path / "own")
    for folders in (("own",), ("good", "own")):
        with pytest.raises(UserError) as caught:
            load(*folders, **rules)
        assert "\n" not in str(caught.value) and all(words in str(caught.value) for words in said), str(caught.value)


def test_a_batch_is_of_one_city(tmp_path, load):
    """As GSV-Cities' own training has them: places of another city are too easily told apart."""
    for city in ("Oslo", "Rome"):
        gsv_cities(tmp_path / "gsv", (0, 100), city)
    for name in ("own", "other"):
        draw(tmp_path / name, itertools.chain(*OWN))
    assert load("gsv").places.sets.tolist() == [0, 0, 1, 1]
    found = load("own", "gsv", "other").places
    assert found.sets.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    batches = hard_batches(found, np.random.default_rng(0).random((10, 1)), 9, np.random.default_rng(1))
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[0, 1, 2], [3, 4], [5, 6], [7, 8, 9]]


def test_cities_of_one_place_each_make_no_batch(tmp_path, load):
    for city in ("Oslo", "Rome"):
        gsv_cities(tmp_path / "gsv", (0,), city)
    with pytest.raises(UserError, match="no two of its 2 places lie 45 m apart"):
        load("gsv")


def test_a_part_of_gsv_cities_is_refused(tmp_path, load):
    """Its folder of images has cities, which are no places."""
    gsv_cities(tmp_path / "gsv", (0, 100))
    with pytest.raises(UserError, match=r"Images is a folder that GSV-Cities has beside its tables.*name .*gsv or"):
        load("gsv/Images")


# Walks


def test_frames_of_a_walk_are_taken_in_the_order_of_their_numbers_each_folder_by_itself(tmp_path, capsys):
    """Five frames are a place, the five after them are of none."""
    for walk, count in (("day", 23), ("night", 14)):
        draw(tmp_path / "train" / "database" / walk, [f"frame_{number}.jpg" for number in range(8, 8 + count)])
    found = load_training_set(PlacesSpec("folder", tmp_path), TrainingRules(loss=LOSS, walk="once"))
    names = [[f"{f.parent.name}/{f.stem}" for f in np.array(found.images.files)[own]] for own in found.places.images]
    starts = [("day", 8), ("day", 18), ("day", 28), ("night", 8), ("night", 18)]
    ends = {"day": 8 + 23, "night": 8 + 14}
    assert names == [[f"{w}/frame_{n}" for n in range(at, min(at + 5, ends[w]))] for w, at in starts]
    assert found.places.positions is None and not found.images.query_files
    assert "5 places with 22 of 37 images" in capsys.readouterr().out


def test_a_walk_of_few_frames_is_refused_in_a_line(tmp_path, capsys):
    draw(tmp_path / "train" / "database", [f"{number}.jpg" for number in range(10)])
    words = ["--mode=train", "--dataset=folder", f"--root={tmp_path}", f"--loss={LOSS}", "--walk", "--device=cpu"]
    assert main.main(words) == 2
    assert "has 1 places" in (said := capsys.readouterr().err) and said.count("\n") == 1
