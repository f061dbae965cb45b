import itertools

import pytest
import torch

from ditbench.shapes import scenes as shapes


@pytest.mark.parametrize("world", shapes.WORLDS)
def test_the_same_seed_draws_and_renders_the_same_scenes(world):
    a, b = (shapes.draw(world, 5, split="train", seed=3) for _ in range(2))
    assert list(a.truths()) == list(b.truths())
    assert torch.equal(*(shapes.render(s, world, split="train", seed=3) for s in (a, b)))


def test_no_two_splits_share_a_number_whatever_the_seed():
    """A split owns the numbers first + stream + 16 s: two are apart where they differ modulo 16, or
    where one ends before the other."""
    for (name, a), (other, b) in itertools.combinations(shapes.SPLITS.items(), 2):
        modulo = {(a.first + stream) % 16 for stream in (0, 1)} & {
            (b.first + stream) % 16 for stream in (0, 1)
        }
        low, high = sorted((a, b), key=lambda split: split.first)
        assert not modulo or low.first + 16 * low.seeds <= high.first, (name, other)
    assert all(
        s.first >= 0 and s.first + 16 * (s.seeds - 1) + 1 < 1 << 32 for s in shapes.SPLITS.values()
    )


def test_the_first_and_last_seeds_of_every_split_draw_other_scenes():
    streams = [
        (split, seed)
        for split, s in shapes.SPLITS.items()
        for seed in (0, 1, s.seeds - 2, s.seeds - 1)
    ]
    numbers = {
        shapes.generator(*stream, part).initial_seed() for stream in streams for part in (0, 1)
    }
    assert len(numbers) == 2 * len(streams)
    drawn = [
        list(shapes.draw("scene", 64, split=split, seed=seed).truths()) for split, seed in streams
    ]
    for a, b in itertools.combinations(drawn, 2):
        # a chance meeting is one in 4608
        assert sum(x == y for x, y in zip(a, b, strict=True)) <= 1
    with pytest.raises(
        ValueError, match="seed 134217728 of the split train is not between 0 and 134217727"
    ):
        shapes.draw("scene", 1, split="train", seed=1 << 27)
    with pytest.raises(
        ValueError, match="there is no split 'valid'; there are train, test, reference"
    ):
        shapes.draw("scene", 1, split="valid", seed=0)


@pytest.mark.parametrize("world", ["scene", "video"])
def test_whether_a_caption_is_held_out_follows_from_its_words_alone(world):
    scenes = shapes.draw(world, 20_000, split="train", seed=0)
    out, texts = shapes.held_out(scenes), shapes.captions(scenes)
    by_text = dict(zip(texts, out.tolist(), strict=True))
    assert len(by_text) < len(texts)  # captions do come twice
    assert all(by_text[text] == held for text, held in zip(texts, out.tolist(), strict=True))
    elsewhere = shapes.draw(
        world, 20_000, split="evaluation", seed=shapes.SPLITS["evaluation"].seeds - 1
    )
    for text, held in zip(
        shapes.captions(elsewhere), shapes.held_out(elsewhere).tolist(), strict=True
    ):
        assert by_text.get(text, held) == held
    for attribute in ("background", "texture"):
        for value in range(4):
            share = out[getattr(scenes, attribute) == value].double().mean()
            assert share == pytest.approx(1 / shapes.HELD_OUT_ONE_IN, abs=0.025)


@pytest.mark.parametrize(("world", "most"), [("class", 1), ("scene", 2), ("video", 1)])
def test_worlds_hold_as_many_objects_as_they_say(world, most):
    num = (shapes.draw(world, 500, split="train", seed=0).shape >= 0).sum(1)
    assert num.min() == 1 and num.max() == most


def test_a_large_red_circle_is_red_round_and_in_its_quadrant():
    none = torch.full((1, 4), -1)
    at = lambda value: none.scatter(1, torch.tensor([[1]]), value)  # noqa: E731
    one = torch.tensor([0])
    scene = shapes.Scenes(
        at(0), at(0), at(1), background=one, texture=one, motion=torch.tensor([-1])
    )
    assert shapes.captions(scene) == ["a large red circle top-right on plain grey"]
    picture = shapes.render(scene, "scene", split="test", seed=0)[0]
    red = (picture[0] > 0.7) & (picture[1] < 0.35)
    rows, columns = red.nonzero(as_tuple=True)
    assert rows.float().mean() < 32 < columns.float().mean()
    area, radius = red.sum().item(), (rows.max() - rows.min() + 1).item() / 2
    assert area == pytest.approx(torch.pi * radius**2, rel=0.12)


@pytest.mark.parametrize("motion", range(4))
def test_an_object_moves_the_way_its_caption_says(motion):
    scenes = shapes.draw("video", 32, split="train", seed=1)
    scenes = shapes.Scenes(
        **{
            **vars(scenes),
            "motion": torch.full((32,), motion),
            "colour": torch.where(scenes.shape >= 0, 5, -1),
        }
    )
    assert f"moving {shapes.MOTIONS[motion]} on" in shapes.captions(scenes)[0]
    video = shapes.render(scenes, "video", split="train", seed=1)  # [n, 3, T, H, W]
    white = (video.amin(1) > 0.8).double()
    axis = torch.arange(48.0, dtype=torch.float64)
    total = white.sum((2, 3)).clamp(min=1)
    x, y = (white.sum(2) * axis).sum(2) / total, (white.sum(3) * axis).sum(2) / total
    move = torch.stack([x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]], 1)
    assert ((move * shapes.DIRECTIONS[motion].double()).sum(1) > 3).all()


def test_every_word_of_a_caption_is_in_the_vocabulary_and_captions_fit_sixteen_tokens():
    for world in shapes.WORLDS:
        for text in shapes.captions(shapes.draw(world, 500, split="train", seed=2)):
            assert set(text.split()) <= set(shapes.WORDS)
            assert len(text.split()) + 1 <= 16


def test_truths_survive_json():
    scenes = shapes.draw("video", 7, split="test", seed=0)
    again = shapes.Scenes.of(list(scenes.truths()))
    assert all(torch.equal(getattr(scenes, name), getattr(again, name)) for name in vars(scenes))


def test_labels_name_the_class_of_the_one_object():
    scenes = shapes.draw("class", 50, split="train", seed=0)
    for label, text in zip(scenes.labels.tolist(), shapes.captions(scenes), strict=True):
        assert shapes.CLASSES[label] in text
