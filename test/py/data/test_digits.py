import torch

from rcm_sidecar.data.digits import load_digits_data, to_pixels


def test_the_split_is_the_documented_one():
    data = load_digits_data()
    assert data.train_images.shape == (1438, 1, 1, 8, 8)
    assert data.held_out_images.shape == (359, 1, 1, 8, 8)
    assert len(data.all_labels) == 1797
    train, held_out = data.train_labels.bincount(), data.held_out_labels.bincount()
    assert torch.equal(train + held_out, data.all_labels.bincount())
    share = held_out / (train + held_out)
    assert ((share - 0.2).abs() < 0.005).all()


def test_no_held_out_image_is_a_training_image():
    data = load_digits_data()
    distances = torch.cdist(data.held_out_images.flatten(1), data.train_images.flatten(1))
    assert distances.min() > 0.1


def test_latents_are_standardised():
    data = load_digits_data()
    values = torch.cat([data.train_images, data.held_out_images]).double()
    assert abs(values.mean()) < 1e-4
    assert abs(values.std() - 1) < 1e-3


def test_pixels_invert_the_standardisation():
    data = load_digits_data()
    grey = torch.arange(17).repeat(4)[:64].reshape(1, 1, 1, 8, 8)
    latents = ((grey / 16 - data.mean) / data.std).float()
    pixels = to_pixels(latents)
    assert pixels.dtype == torch.uint8 and pixels.shape == (1, 8, 8, 1)
    wanted = grey[0, 0, 0] * 255 / 16
    assert ((pixels[0, :, :, 0] - wanted).abs() <= 0.5).all()


def test_pixels_outside_the_range_are_clipped():
    assert to_pixels(torch.full((1, 1, 1, 8, 8), 99.0)).unique().tolist() == [255]
    assert to_pixels(torch.full((1, 1, 1, 8, 8), -99.0)).unique().tolist() == [0]
