"""The VAE: keys of the original file, the latents' scale, shapes, tiles when memory is short."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from encoders import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from rcm_sidecar.encoders.original_keys import vae_key
from rcm_sidecar.encoders.vae import from_bytes, load_vae, to_bytes
from rcm_sidecar.errors import HostError, WeightsError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(folders):
    return load_vae(folders["wan_original"] / "Wan2.1_VAE.pth", CPU)


def test_every_key_becomes_the_one_that_diffusers_own_converter_makes():
    native = tiny_models.native_vae_keys(tiny_models.vae())
    markers = {key: torch.full((1,), float(index)) for index, key in enumerate(native)}
    expected = {key: value.item() for key, value in convert_wan_vae_to_diffusers(dict(markers)).items()}
    assert len(native) == 194
    assert {vae_key(key): value.item() for key, value in markers.items()} == expected


@pytest.mark.parametrize("name", ["wan_original", "wan_diffusers", "cosmos_original", "cosmos_diffusers"])
def test_latents_are_the_normalised_means_of_the_posterior(folders, name):
    folder = folders[name]
    file = folder / ("Wan2.1_VAE.pth" if name == "wan_original" else "tokenizer/tokenizer.pth")
    loaded = load_vae(file if name.endswith("original") else folder / "vae", CPU)
    pixels = torch.rand(1, 3, 5, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    plain = tiny_models.vae()
    with torch.no_grad():
        mean = plain.encode(pixels).latent_dist.mean
    statistics = [torch.tensor(values).view(1, -1, 1, 1, 1) for values in (MEAN, STD)]
    expected = (mean - statistics[0]) / statistics[1]
    latents = loaded.encode(pixels)
    torch.testing.assert_close(latents, expected)
    with torch.no_grad():
        decoded = plain.decode(mean).sample
    torch.testing.assert_close(loaded.decode(latents), decoded.clamp(-1, 1), rtol=1e-4, atol=1e-4)


# wan2.1.md section 6.1
MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508]
MEAN += [0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743]
STD += [3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]


@settings(max_examples=6)
@given(groups=st.integers(0, 2), rows=st.integers(1, 3), columns=st.integers(1, 3), batch=st.integers(1, 2))
def test_shapes_of_latents_and_back(vae, groups, rows, columns, batch):
    pixels = torch.zeros(batch, 3, 1 + 4 * groups, 8 * rows, 8 * columns)
    latents = vae.encode(pixels)
    assert latents.shape == (batch, 16, 1 + groups, rows, columns)
    assert vae.decode(latents).shape == pixels.shape


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 20)])
def test_other_sizes_are_refused(vae, shape):
    with pytest.raises(ValueError, match="frames 4n"):
        vae.encode(torch.zeros(shape))


def test_a_prefix_of_a_video_has_a_prefix_of_its_latents(vae):
    pixels = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    torch.testing.assert_close(vae.encode(pixels[:, :, :5]), vae.encode(pixels)[:, :, :2], rtol=1e-4, atol=1e-5)


def test_bytes_round_to_the_nearest_and_come_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)
    pixels = from_bytes(every)
    assert pixels.shape == (1, 3, 1, 16, 16) and pixels.min() == -1 and pixels.max() == 1
    assert torch.equal(to_bytes(pixels + 0.003), every)
    assert to_bytes(3 * pixels).aminmax() == (0, 255)


class Short:
    """Fails as a full GPU does until it decodes in tiles."""

    def __init__(self, model, *, ever=False):
        self._model, self._ever, self.use_tiling = model, ever, False
        self.config, self.dtype = model.config, model.dtype

    def enable_tiling(self):
        self.use_tiling = True

    def decode(self, latents):
        if self._ever or not self.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return self._model.decode(latents)


def test_short_memory_means_tiles(folders, vae):
    latents = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    loaded = load_vae(folders["wan_diffusers"] / "vae", CPU)
    loaded._model = Short(loaded._model)
    assert torch.equal(loaded.decode(latents), vae.decode(latents)) and loaded.tiled
    loaded._model = Short(loaded._model, ever=True)
    with pytest.raises(HostError, match="not even decoding in tiles: CUDA out of memory") as caught:
        loaded.decode(latents)
    assert caught.value.code == "E_GPU"


def test_a_file_of_another_kind_is_refused(folders):
    with pytest.raises(WeightsError, match="holds no Wan VAE"):
        load_vae(folders["wan_original"] / "models_t5_umt5-xxl-enc-bf16.pth", CPU)
    with pytest.raises(WeightsError, match="holds no AutoencoderKLWan"):
        load_vae(folders["wan_diffusers"] / "text_encoder", CPU)
