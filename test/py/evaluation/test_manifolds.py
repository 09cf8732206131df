import pytest
import torch

from rcm_sidecar.evaluation.manifolds import compare, manifold, nearest_distances


def scores(real: torch.Tensor, generated: torch.Tensor, k: int = 5) -> dict[str, float]:
    result = compare(manifold(real, k), manifold(generated, k))
    return {name: getattr(result, name).mean().item() for name in ("precision", "density", "recall", "coverage")}


def by_loops(real: torch.Tensor, generated: torch.Tensor, k: int) -> dict[str, float]:
    """The definitions, point by point."""

    def radius(points: torch.Tensor, i: int) -> float:
        others = [torch.dist(points[i], points[j]).item() for j in range(len(points)) if j != i]
        return sorted(others)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    generated_radii = [radius(generated, i) for i in range(len(generated))]
    inside = [
        [torch.dist(r, g).item() <= radius for g in generated] for r, radius in zip(real, real_radii, strict=True)
    ]
    back = [[torch.dist(r, g).item() <= s for g, s in zip(generated, generated_radii, strict=True)] for r in real]
    columns = list(zip(*inside, strict=True))
    return {
        "precision": sum(any(column) for column in columns) / len(generated),
        "density": sum(sum(column) for column in columns) / (k * len(generated)),
        "recall": sum(any(row) for row in back) / len(real),
        "coverage": sum(any(row) for row in inside) / len(real),
    }


def cloud(seed: int, n: int, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_against_the_definitions_point_by_point():
    for seed in range(5):
        real, generated = cloud(seed, 40), 0.7 * cloud(seed + 100, 30) + 0.3
        wanted = by_loops(real, generated, 3)
        assert scores(real, generated, 3) == pytest.approx(wanted)


def test_a_hand_made_line():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    generated = torch.tensor([[0.5], [0.6], [50.0]])
    # radii with k = 1: real 1, 1, 1, 8; generated 0.1, 0.1, 49.4
    wanted = {"precision": 2 / 3, "density": 4 / 3, "recall": 3 / 4, "coverage": 2 / 4}
    assert scores(real, generated, 1) == pytest.approx(wanted)


def test_copies_of_the_real_set_are_perfect():
    real = cloud(0, 100)
    assert scores(real, real.clone()) == {
        "precision": 1,
        "density": scores(real, real)["density"],
        "recall": 1,
        "coverage": 1,
    }


def test_one_mode_of_two_has_precision_but_half_the_recall_and_coverage():
    left, right = cloud(0, 200), cloud(1, 200) + 100
    collapsed = scores(torch.cat([left, right]), cloud(2, 400))
    assert collapsed["precision"] > 0.9
    assert 0.4 < collapsed["recall"] <= 0.5 and 0.4 < collapsed["coverage"] <= 0.5


def test_spread_out_samples_have_recall_but_no_precision():
    real = cloud(0, 300, 8)
    spread = scores(real, 3 * cloud(1, 300, 8))
    assert spread["recall"] > 0.95 and spread["precision"] < 0.3


def test_identical_samples_cover_nothing():
    point = scores(cloud(0, 100), torch.zeros(50, 3))
    assert point["recall"] == 0 and point["coverage"] < 0.5


def test_nearest_distances_are_exact():
    points = cloud(0, 50)
    assert nearest_distances(points[3:5], points).tolist() == [0, 0]
    queries = cloud(1, 7)
    wanted = [min(torch.dist(q, p).item() for p in points) for q in queries]
    torch.testing.assert_close(nearest_distances(queries, points), torch.tensor(wanted, dtype=torch.float64))
