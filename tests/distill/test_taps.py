import gc
import weakref

import pytest
import torch
from torch import nn

from fgd_distill.taps import LayerTap, feature_list, find_layer


class Net(nn.Module):
    """Three convolutions one after the other, of which the second runs twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.ran = []
        for name in ("first", "second", "third"):
            self.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: self.ran.append(name))

    def forward(self, x):
        try:
            return self.third(self.second(self.second(self.first(x))))
        except Exception as error:  # a detector may do so; the end of a pass must get through
            raise AssertionError("caught") from error


IMAGE = torch.rand(1, 2, 4, 4)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_outputs_come_in_the_order_of_the_names():
    net = Net()
    with LayerTap(net, ["third", "first"]) as tap:
        output = net(IMAGE)
    third, first = tap.features()
    assert third is output and torch.equal(first, net.first(IMAGE))
    assert hooks(net) == 0


def test_wrong_layer_names_list_close_ones():
    with pytest.raises(ValueError, match="Net has no module 'secnod'; close names are .*'second'"):
        LayerTap(Net(), ["secnod"])
    with pytest.raises(ValueError, match="no module ''"):
        find_layer(Net(), "")


def test_outputs_that_are_no_feature_maps():
    maps = [torch.zeros(1, 2, 3, 3)] * 2
    assert len(feature_list({"a": maps[0], "b": maps[1]}, "x")) == len(feature_list(tuple(maps), "x")) == 2
    assert len(feature_list(maps[0], "x")) == 1
    for nothing in (None, "text", [maps[0], None], {"a": 1.0}):
        with pytest.raises(TypeError, match="layer 'x': expected a tensor, or a dict"):
            feature_list(nothing, "x")
    with pytest.raises(ValueError, match=r"layer 'x': expected feature maps.*\(1, 2\)"):
        feature_list([torch.zeros(1, 2)], "x")
    with pytest.raises(ValueError, match="layer 'x': expected feature maps.*no tensor"):
        feature_list([], "x")


def test_layers_that_run_never_or_twice():
    net = Net()
    with LayerTap(net, ["first", "third"]) as tap:
        net.first(IMAGE)
    with pytest.raises(RuntimeError, match="layer 'third' did not run"):
        tap.features()
    with LayerTap(net, ["second"]) as tap:
        net(IMAGE)
    with pytest.raises(RuntimeError, match="layer 'second' ran 2 times"):
        tap.features()


def test_a_pass_ends_behind_the_last_tapped_layer():
    net = Net()
    with LayerTap(net, ["second", "first"], stop=True) as tap:
        net(IMAGE)
        net.ran.append("behind")
    assert net.ran == ["first", "second"]
    second, first = tap.features()
    assert torch.equal(second, net.second(first))
    assert hooks(net) == 0


def test_an_outer_tap_is_not_ended_by_an_inner_one():
    net = Net()
    with LayerTap(net, ["first", "third"], stop=True) as outer:
        with LayerTap(net, ["first"], stop=True) as inner:
            net(IMAGE)
        net.third(IMAGE)
        net.ran.append("behind")
    assert net.ran == ["first", "third"]
    assert len(outer.features()) == 2 and len(inner.features()) == 1


def test_other_errors_pass_and_hooks_go():
    net = Net()
    for stop in (True, False):
        with pytest.raises(AssertionError, match="caught"), LayerTap(net, ["third"], stop=stop):
            net(torch.rand(1, 5, 4, 4))
        assert hooks(net) == 0


@pytest.mark.parametrize("stop", [True, False])
def test_maps_are_freed_without_the_garbage_collector(stop):
    """The exception that ends a pass must not keep its frames, and with them every map, alive."""
    net = Net()
    gc.collect()
    gc.disable()
    try:
        with LayerTap(net, ["first"], stop=stop) as tap:
            net(IMAGE)
        alive = weakref.ref(tap.features()[0])
        del tap
        assert alive() is None
    finally:
        gc.enable()


def test_an_output_that_a_later_layer_changes():
    """The student's would be the activation's output, and the teacher's, whose pass ends here, the convolution's."""
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True))
    with LayerTap(net, ["0"]) as tap:
        net(IMAGE)
    with pytest.raises(RuntimeError, match="layer '0': a later layer changed its output in place"):
        tap.features()
    with LayerTap(net, ["1"]) as tap:
        net(IMAGE)
    assert (tap.features()[0] >= 0).all()
