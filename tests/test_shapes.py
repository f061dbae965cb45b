import pytest
import torch

from ditbench import shapes


@pytest.mark.parametrize("world", shapes.WORLDS)
def test_the_same_seed_draws_and_renders_the_same_scenes(world):
    a, b = (shapes.draw(world, 5, split="train", seed=3) for _ in range(2))
    assert list(a.truths()) == list(b.truths())
    assert torch.equal(*(shapes.render(s, world, split="train", seed=3) for s in (a, b)))


def test_train_and_test_splits_share_no_stream():
    drawn = [
        list(shapes.draw("scene", 64, split=split, seed=seed).truths())
        for split in ("train", "test")
        for seed in (0, 1, 7)
    ]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert sum(x == y for x, y in zip(a, b, strict=True)) <= 1  # a chance meeting is one in 4608
    with pytest.raises(ValueError, match="seed 134217728 is not between"):
        shapes.draw("scene", 1, split="test", seed=1 << 27)
    with pytest.raises(ValueError, match="split is 'train' or 'test', not 'valid'"):
        shapes.draw("scene", 1, split="valid", seed=0)


@pytest.mark.parametrize(("world", "most"), [("class", 1), ("scene", 2), ("video", 1)])
def test_worlds_hold_as_many_objects_as_they_say(world, most):
    num = (shapes.draw(world, 500, split="train", seed=0).shape >= 0).sum(1)
    assert num.min() == 1 and num.max() == most


def test_a_large_red_circle_is_red_round_and_in_its_quadrant():
    none = torch.full((1, 4), -1)
    at = lambda value: none.scatter(1, torch.tensor([[1]]), value)  # noqa: E731
    one = torch.tensor([0])
    scene = shapes.Scenes(at(0), at(0), at(1), background=one, texture=one, motion=torch.tensor([-1]))
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
        **{**vars(scenes), "motion": torch.full((32,), motion), "colour": torch.where(scenes.shape >= 0, 5, -1)}
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
