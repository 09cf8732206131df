"""The metrics on real digits: what a bad student looks like in numbers."""

import pytest
import torch
from evaluation.plans import CONFIG, plan_of, row

from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.evaluation.features import feature_function
from rcm_sidecar.evaluation.metrics import ImageSet
from rcm_sidecar.evaluation.run import make_references, measure_images
from rcm_sidecar.evaluation.sampling import Drawn

DATA = load_digits_data()
PLAN = plan_of(resamples=50)
FEATURES = feature_function("builtin:digits-classifier")
REFERENCES = make_references(PLAN, DATA, FEATURES, None)


def measured(latents: torch.Tensor, labels: torch.Tensor) -> dict[str, float | None]:
    result = measure_images(PLAN, row("student", 1), ImageSet(latents, labels), 0.0, REFERENCES)
    return {name: metric.value for name, metric in result.metrics.items()}


@pytest.fixture(scope="module")
def held_out() -> dict[str, float | None]:
    """Honest new digits, judged like a student."""
    return measured(DATA.held_out_images, DATA.held_out_labels)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_honest_digits_look_good(held_out):
    assert held_out["precision"] > 0.85 and held_out["recall"] > 0.7 and held_out["coverage"] > 0.6
    assert held_out["accuracy"] > 0.98 and held_out["density"] > 0.7


def test_a_collapsed_student_is_flagged_by_recall_and_coverage(held_out):
    firsts = torch.stack([DATA.train_images[DATA.train_labels == digit][0] for digit in range(10)])
    latents = firsts[DATA.all_labels] + 0.05 * noise(1797, 1, 1, 8, 8)
    collapsed = measured(latents, DATA.all_labels)
    assert collapsed["recall"] < 0.1 and collapsed["coverage"] < 0.3
    assert collapsed["precision"] > 0.9  # which is why precision alone is no proof


def test_a_student_of_one_class_is_flagged_by_accuracy_too():
    zeros = DATA.train_images[DATA.train_labels == 0]
    one_class = measured(zeros[torch.arange(1797) % len(zeros)], DATA.all_labels)
    assert one_class["accuracy"] < 0.15 and one_class["coverage"] < 0.2


def test_a_blurred_student_is_flagged_by_precision_and_accuracy(held_out):
    kernel = torch.ones(1, 1, 5, 5) / 25
    pixels = DATA.held_out_images[:, :, 0]
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    blurred = measured(torch.nn.functional.conv2d(padded, kernel)[:, :, None], DATA.held_out_labels)
    assert blurred["precision"] < held_out["precision"] - 0.2
    assert blurred["accuracy"] < held_out["accuracy"] - 0.2
    assert blurred["fdReal"] > 0


def test_copies_are_nearer_to_the_training_images_than_new_digits(held_out):
    copies = measured(DATA.train_images, DATA.train_labels)
    assert copies["nearestTrain"] == 0
    assert held_out["nearestTrain"] > 2


def test_a_student_that_is_not_finite_has_no_values():
    values = measured(torch.full((400, 1, 1, 8, 8), torch.nan), DATA.all_labels[:400])
    assert set(values.values()) == {None}


def test_image_rows_are_not_compared_with_themselves():
    train = ImageSet(DATA.train_images, DATA.train_labels, is_train=True)
    metrics = measure_images(PLAN, row("train"), train, None, REFERENCES).metrics
    assert {name for name, metric in metrics.items() if metric.reason == "reference"} == {
        "precision",
        "recall",
        "density",
        "coverage",
        "nearestTrain",
    }
    held_out = ImageSet(DATA.held_out_images, DATA.held_out_labels, is_held_out=True)
    assert measure_images(PLAN, row("heldOut"), held_out, None, REFERENCES).metrics["fdReal"].reason == "reference"


def test_intervals_hold_their_values_and_are_repeatable():
    images = ImageSet(DATA.held_out_images, DATA.held_out_labels)
    fresh = Drawn(DATA.train_images, 0.0)
    references = make_references(PLAN, DATA, FEATURES, fresh)
    first, second = (measure_images(PLAN, row("student", 1), images, 0.0, references) for _ in range(2))
    assert first == second
    for metric in first.metrics.values():
        assert metric.low <= metric.value <= metric.high


def test_distances_are_refused_below_ten_samples_a_dimension():
    for count, reason in ((319, "n"), (320, None)):
        images = ImageSet(DATA.train_images[:count], DATA.train_labels[:count])
        metric = measure_images(PLAN, row("student", 1), images, 0.0, REFERENCES).metrics["fdReal"]
        assert (metric.value is None) == (reason == "n")


def test_every_metric_of_the_config_exists():
    assert set(CONFIG.evaluation.metrics) == set(measured(DATA.held_out_images, DATA.held_out_labels))
