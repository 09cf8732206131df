import msgspec
import pytest
import torch
from evaluation.plans import CONFIG, plan_of, row, shipped_teacher

from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.evaluation import comparison_grid, preview_grids, run_evaluation, teacher_key
from rcm_sidecar.evaluation.cache import cache_key
from rcm_sidecar.evaluation.run import REFERENCE_SEED_OFFSET
from rcm_sidecar.evaluation.sampling import SampleSource, noise_sets

DATA = load_digits_data()
SHIPPED, CONDITIONER = shipped_teacher()
SAMPLER = msgspec.structs.replace(CONFIG.teacher.sampler, steps=2)
SHORT = msgspec.structs.replace(CONFIG, teacher=msgspec.structs.replace(CONFIG.teacher, sampler=SAMPLER))
ROWS = (
    row("train"),
    row("heldOut"),
    row("teacher", 1, 1.5),
    row("teacher", 2, 1.5),
    row("student", 1),
    row("student", 2),
)


def toy_teacher(x, t, text):
    """A cheap velocity field that knows its label."""
    return 0.9 * x - text.mean((1, 2))[:, None, None, None, None]


def evaluate(
    plan, *, student=toy_teacher, teacher=toy_teacher, cache_dir=None, key="a", check=lambda: None, config=SHORT
):
    return run_evaluation(
        plan,
        step=7,
        student=student,
        teacher=teacher,
        condition=CONDITIONER,
        data=DATA,
        config=config,
        cache_dir=cache_dir,
        teacher_key=key,
        check_cancelled=check,
    )


def refuse(x, t, text):
    raise AssertionError("the teacher was called")


@pytest.fixture(scope="module")
def body():
    return evaluate(plan_of(*ROWS))


def test_rows_come_in_the_plan_s_order_with_their_facts(body):
    assert [(r.sampler, r.steps, r.guidance, r.calls, r.n, r.seed) for r in body.rows] == [
        ("train", None, None, 0, 1438, None),
        ("heldOut", None, None, 0, 359, None),
        ("teacher", 1, 1.5, 2, 400, 1000),
        ("teacher", 2, 1.5, 4, 400, 1000),
        ("student", 1, None, 1, 400, 1000),
        ("student", 2, None, 2, 400, 1000),
    ]
    assert [r.seconds is None for r in body.rows] == [True, True, False, False, False, False]
    assert body.feature_dimension == 32 and body.step == 7
    assert all(set(r.metrics) == set(CONFIG.evaluation.metrics) for r in body.rows)


def test_floors_are_the_distances_they_say(body):
    train, teacher = body.rows[0], body.rows[3]
    assert body.floors.real_real == pytest.approx(train.metrics["fdReal"].value, rel=1e-9)
    assert body.floors.teacher_teacher == pytest.approx(teacher.metrics["fdTeacher"].value, rel=1e-9)
    assert 0 < body.floors.teacher_teacher < train.metrics["fdTeacher"].value


def test_the_same_plan_gives_the_same_values(body):
    again = evaluate(plan_of(*ROWS))
    assert [r.metrics for r in again.rows] == [r.metrics for r in body.rows]


def test_cached_teacher_rows_need_no_teacher(tmp_path, body):
    first = evaluate(plan_of(*ROWS), cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3  # 1 step, 2 steps, the reference
    second = evaluate(plan_of(*ROWS), cache_dir=tmp_path, teacher=refuse)
    assert [r.metrics for r in second.rows] == [r.metrics for r in first.rows] == [r.metrics for r in body.rows]
    assert second.rows[2].seconds == first.rows[2].seconds
    for change in ({"key": "b"}, {"config": CONFIG}):
        with pytest.raises(AssertionError, match="was called"):
            evaluate(plan_of(*ROWS), cache_dir=tmp_path, teacher=refuse, **change)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cache_is_made_again(tmp_path, damage, body):
    evaluate(plan_of(*ROWS), cache_dir=tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-100] ^= 64
        path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-7]), "empty": b""}[damage])
    again = evaluate(plan_of(*ROWS), cache_dir=tmp_path)
    assert [r.metrics for r in again.rows] == [r.metrics for r in body.rows]
    evaluate(plan_of(*ROWS), cache_dir=tmp_path, teacher=refuse)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, body):
    (tmp_path / "file").write_text("in the way")
    again = evaluate(plan_of(*ROWS), cache_dir=tmp_path / "file")
    assert [r.metrics for r in again.rows] == [r.metrics for r in body.rows]


def test_keys_depend_on_content_not_on_names_of_folders(tmp_path):
    def key(folder, contents):
        (tmp_path / folder).mkdir()
        files = {name: tmp_path / folder / name for name in contents}
        for name, content in contents.items():
            files[name].write_bytes(content)
        return teacher_key(files)

    contents = {"model.safetensors": b"1", "conditioner.safetensors": b"2"}
    assert key("a", contents) == key("b", dict(reversed(contents.items())))
    assert key("c", contents) != key("d", {**contents, "model.safetensors": b"3"})
    assert cache_key("k", {"seed": 1, "steps": 2}) == cache_key("k", {"steps": 2, "seed": 1})
    assert cache_key("k", {"seed": 1}) != cache_key("k", {"seed": 2})


def test_a_cancel_is_seen_before_every_network_call():
    calls, checks = [], []

    def counted(x, t, text):
        calls.append(len(x))
        return toy_teacher(x, t, text)

    evaluate(plan_of(*ROWS), student=counted, teacher=counted, check=lambda: checks.append(1))
    assert len(checks) >= len(calls) and max(calls) <= 256

    def stop():
        if len(calls) > 3:
            raise KeyboardInterrupt

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan_of(*ROWS), student=counted, teacher=counted, check=stop)
    assert len(calls) == 4


def test_eight_samples_say_why_there_is_no_distance():
    body = evaluate(plan_of(row("teacher", 1, 1.5), row("student", 1), samples=8))
    for measured in body.rows:
        assert measured.n == 8
        assert measured.metrics["fdTeacher"].reason == "n" and measured.metrics["fdReal"].reason == "n"
        assert measured.metrics["accuracy"].value is not None
    assert body.floors.teacher_teacher is None


def test_without_features_there_are_rows_without_values():
    body = evaluate(plan_of(row("train"), row("student", 1), samples=8, features=None), teacher=refuse)
    assert {metric.reason for r in body.rows for metric in r.metrics.values()} == {"features"}
    assert body.feature_dimension is None


def test_impossible_rows_are_refused():
    for bad, networks in ((row("student", 9), {}), (row("student", 1), {"student": None}), (row("student"), {})):
        with pytest.raises(ConfigError):
            evaluate(plan_of(bad, samples=8), **networks)


def test_guidance_one_makes_no_negative_call():
    texts = []

    def watched(x, t, text):
        texts.append(text)
        return toy_teacher(x, t, text)

    source = SampleSource(CONFIG, CONDITIONER, (1, 1, 8, 8), 1000.0, lambda: None)
    source.teacher(watched, torch.arange(10), 2, 1.0, 0)
    assert len(texts) == 2
    source.teacher(watched, torch.arange(10), 2, 1.5, 0)
    assert len(texts) == 6 and torch.equal(texts[3], CONDITIONER.empty(10))


@pytest.mark.parametrize(
    ("shape", "samples", "sizes"),
    [
        ((1, 1, 8, 8), 600, [256, 256, 88]),
        ((1, 1, 4, 4), 300, [256, 44]),
        ((16, 1, 16, 16), 5, [4, 1]),
        ((16, 1, 90, 160), 2, [1, 1]),
    ],
    ids=["digits", "smaller", "a small picture", "a picture"],
)
def test_large_latents_are_drawn_few_at_a_time(shape, samples, sizes):
    seen = []

    def watched(x, t, text):
        seen.append(len(x))
        return torch.zeros_like(x)

    source, labels = SampleSource(CONFIG, CONDITIONER, shape, 1000.0, lambda: None), torch.arange(samples) % 10
    drawn = [source.student(watched, labels, 1, 3), source.teacher(watched, labels, 1, 1.0, 3)]
    assert seen == 2 * sizes
    assert all(torch.isfinite(one.latents).all() and one.latents.shape == (samples, *shape) for one in drawn)


def test_all_samplers_start_from_the_same_noise():
    first = noise_sets(1, 20, (1, 1, 8, 8), 5)[0]
    assert torch.equal(first, noise_sets(4, 20, (1, 1, 8, 8), 5)[0])
    seen = []

    def watched(x, t, text):
        seen.append(x)
        return torch.zeros_like(x)

    source = SampleSource(CONFIG, CONDITIONER, (1, 1, 8, 8), 1000.0, lambda: None)
    for steps in (1, 2, 4):
        source.student(watched, torch.zeros(20, dtype=torch.long), steps, 5)
    source.teacher(watched, torch.zeros(20, dtype=torch.long), 1, 1.0, 5)
    starts = [seen[0], seen[1], seen[3]]
    assert all(torch.equal(start, starts[0]) for start in starts)
    torch.testing.assert_close(starts[0], first * (80 / 81), rtol=1e-6, atol=0)
    assert torch.equal(seen[7], first)


def test_the_reference_has_another_seed():
    assert REFERENCE_SEED_OFFSET != 0
    body = evaluate(plan_of(row("teacher", 2, 1.5)))
    assert body.rows[0].metrics["fdTeacher"].value > 0.01


def test_grids():
    plan = plan_of(row("student", 1), row("student", 2))
    common = {"condition": CONDITIONER, "config": SHORT, "plan": plan, "step": 3, "check_cancelled": lambda: None}
    grid = comparison_grid(student=SHIPPED, teacher=SHIPPED, **common)
    assert grid.rows[:3] == (
        "teacher, 50 steps, guidance 1.5",
        "teacher, 4 steps, guidance 1.5",
        "teacher, 1 step, guidance 1.5",
    )
    assert grid.rows[3:] == ("student, 1 step", "student, 2 steps")
    assert grid.pixels.shape == (5, 10, 8, 8, 1) and grid.pixels.dtype == torch.uint8
    assert grid.step == 3 and grid.kind == "evaluation" and grid.columns == tuple("0123456789")
    assert comparison_grid(student=None, teacher=toy_teacher, **common).pixels.shape[0] == 3
    previews = preview_grids(network=SHIPPED, sampler="student", **common)
    assert [p.title for p in previews] == ["student, 1 step", "student, 2 steps"]
    assert previews[0].rows == ("seed 0", "seed 1", "seed 2", "seed 3")
    assert previews[0].pixels.shape == (4, 10, 8, 8, 1)
    assert not torch.equal(previews[0].pixels[0], previews[0].pixels[1])
