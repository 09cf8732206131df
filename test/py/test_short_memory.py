"""What happens when a GPU's memory is short, acted out on a CPU; on a GPU the last test runs for real."""

import pytest
import torch
from torch import nn

from rcm_sidecar.errors import HostError
from rcm_sidecar.short_memory import again_if_short, load_or_stream, stream_blocks

CPU = torch.device("cpu")


def short():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. More.")


def test_the_second_try_is_made_with_less():
    done = []
    assert again_if_short(lambda: "as it is", short, "x") == "as it is"
    assert again_if_short(lambda: "less" if done else short(), lambda: done.append(1), "x") == "less"
    with pytest.raises(HostError, match="not even in tiles: CUDA out of memory") as caught:
        again_if_short(short, lambda: None, "in tiles")
    assert caught.value.code == "E_GPU" and "--device cpu" in caught.value.hint
    with pytest.raises(HostError):
        again_if_short(short, lambda: pytest.fail("there is no smaller way"), "x", exhausted=True)
    with pytest.raises(ZeroDivisionError):
        again_if_short(lambda: 1 / 0, lambda: pytest.fail("not a matter of memory"), "x")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(3))
        self.requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def weights_of(net):
    return [parameter.data_ptr() for parameter in net.parameters()]


def test_blocks_visit_the_device_and_go_home():
    net, x = Net(), torch.randn(2, 4)
    expected = net(x)
    stream_blocks(net, net.blocks, CPU)
    home = weights_of(net)
    assert torch.equal(net(x), expected) and torch.equal(net(x), expected) and weights_of(net) == home


def test_a_failure_in_a_block_leaves_the_weights_at_home():
    net, device = Net(), torch.device("meta")
    stream_blocks(net, net.blocks, device)
    home = weights_of(net)
    with pytest.raises(RuntimeError):
        net.blocks[0](torch.empty(2, 5, device=device))
    assert weights_of(net) == home and not net.blocks[0][0].weight.is_meta


def test_a_module_that_does_not_fit_stays_on_the_cpu():
    # The meta device stands for a GPU.
    tried, meta = [], torch.device("meta")

    def load(where):
        tried.append(where)
        return Net() if where == CPU else short()

    net = load_or_stream(load, lambda module: module.blocks, meta)
    assert tried == [meta, CPU]
    assert net.first.weight.is_meta and not net.blocks[0][0].weight.is_meta
    out = net(torch.empty(2, 4, device=meta))  # fails if a block computed on the CPU
    assert out.is_meta and not net.blocks[0][0].weight.is_meta


@pytest.mark.gpu
def test_blocks_visit_a_gpu():
    device, x = torch.device("cuda"), torch.randn(2, 4)
    net = Net()
    expected = net(x)
    stream_blocks(net, net.blocks, device)
    torch.testing.assert_close(net(x.to(device)).cpu(), expected)
    assert net.first.weight.is_cuda and not net.blocks[0][0].weight.is_cuda
