"""Which adapter is found for a detector: registered ones, those of other packages, the package's own. 2 s."""

import copy
import pickle
import sys
from importlib.metadata import PathDistribution

import pytest
import spots
import torch
from torch import nn

import fgd_distill
from fgd_distill import DetectionDistiller, DetectorAdapter, TorchvisionAdapter, register_adapter
from fgd_distill.adapters import adapter_for, as_adapter, probe_channels, registry
from fgd_distill.criterion import guess_preset
from fgd_distill.digits.detectors import digits_student


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])
    registry._from_entry_points.cache_clear()
    yield
    registry._from_entry_points.cache_clear()


class Other(spots.SpotAdapter):
    pass


@pytest.mark.parametrize("models", [spots.SpotNet, "spots", lambda model: hasattr(model, "down")])
def test_by_class_by_package_and_by_a_function(models):
    model = spots.small()
    with pytest.raises(TypeError, match="no adapter for SpotNet"):
        adapter_for(model)
    register_adapter(models, spots.SpotAdapter)
    assert type(adapter_for(model)) is spots.SpotAdapter
    assert type(adapter_for(digits_student())) is TorchvisionAdapter
    with pytest.raises(TypeError, match="no adapter for Linear"):
        adapter_for(nn.Linear(1, 1))


def test_an_object_and_a_name():
    own = Other()
    register_adapter(spots.SpotNet, own)
    assert adapter_for(spots.small()) is own
    register_adapter(spots.SpotNet, "spots:SpotAdapter")
    assert type(adapter_for(spots.small())) is spots.SpotAdapter
    assert as_adapter(own, spots.small()) is own and type(as_adapter("spots:SpotAdapter", own)) is spots.SpotAdapter


def test_the_last_comes_first_and_ones_own_before_the_packages():
    register_adapter("spots", spots.SpotAdapter)
    register_adapter(spots.SpotNet, Other)
    assert type(adapter_for(spots.small())) is Other
    register_adapter("spots", spots.SpotAdapter)  # again, as a module that is loaded anew does
    assert type(adapter_for(spots.small())) is spots.SpotAdapter and len(registry._registered) == 2
    register_adapter("torchvision", Other)
    assert type(adapter_for(digits_student())) is Other
    register_adapter("spot", TorchvisionAdapter)  # 'spots' only begins with it
    assert type(adapter_for(spots.small())) is spots.SpotAdapter


def test_an_installed_package_needs_no_call(tmp_path, monkeypatch):
    """Its metadata has an entry point; what it names is imported only when such a model comes."""
    info = tmp_path / "spots_of_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spots-of-mine\nVersion: 1.0\n")
    lines = ["[fgd_distill.adapters]", "spots = spots:SpotAdapter", "torchvision.models = no_such_module:Adapter"]
    (info / "entry_points.txt").write_text("\n".join(lines))

    class Finder:
        @staticmethod
        def find_spec(*_):
            return None

        @staticmethod
        def find_distributions(*_):
            return [PathDistribution(info)]

    monkeypatch.setattr("sys.meta_path", [*sys.meta_path, Finder])
    assert type(adapter_for(spots.small())) is spots.SpotAdapter
    with pytest.raises(ValueError, match="cannot import 'no_such_module:Adapter'"):
        adapter_for(digits_student())
    register_adapter(spots.SpotNet, Other)
    assert type(adapter_for(spots.small())) is Other


class SixMethods:
    """As adapters of the first version were."""

    def __init__(self):
        own = spots.SpotAdapter()
        for name in registry.REQUIRED:
            setattr(self, name, getattr(own, name))


def test_an_adapter_with_six_methods_gets_the_defaults():
    student, teacher = spots.small(side=64), spots.large(side=64)
    adapter = as_adapter(SixMethods(), student)
    target = {"boxes": torch.tensor([[8.0, 8.0, 24.0, 24.0]]), "labels": torch.tensor([1])}
    batch, boxes = adapter.frame(student.eval(), [torch.rand(3, 32, 64)], [target])
    assert batch.shape == (1, 3, 64, 64) and boxes[0].tolist() == [[8.0, 24.0, 24.0, 40.0]] and not student.training
    picture = adapter.picture(student, batch)
    assert picture.min() == 0 and picture.max() == 1 and batch.min() < 0
    assert torch.equal(adapter.picture(student, batch.abs()), batch.abs())
    assert (adapter.first_label(student), adapter.preset(student)) == (0, None)
    assert type(copy.deepcopy(adapter)) is type(pickle.loads(pickle.dumps(adapter))) is type(adapter)
    assert probe_channels(student, ["neck.0", "neck.1"], SixMethods()) == [16, 16]
    distiller = DetectionDistiller(student, teacher, nn.Identity(), adapter=SixMethods())
    assert distiller.student_layers == ["neck.0", "neck.1"]


def test_what_is_no_adapter():
    class Half(DetectorAdapter):
        def default_layers(self, model):
            return ["neck"]

    for adapter in (Half, object(), SixMethods):
        with pytest.raises(TypeError, match=r"adapter: expected the methods of .*DetectorAdapter.*without.* predict"):
            register_adapter(spots.SpotNet, adapter)
    with pytest.raises(TypeError, match="without check_pair, neck_and_head, predict, run_backbone, student_step"):
        register_adapter(spots.SpotNet, Half)
    with pytest.raises(ValueError, match="adapter: expected module:Class, got 'spots'"):
        register_adapter(spots.SpotNet, "spots")
    with pytest.raises(TypeError, match="models: expected a class, a package's name or a function, got int"):
        register_adapter(3, Other)
    register_adapter("spots", "spots:nn")
    with pytest.raises(TypeError, match="got module without check_pair"):
        adapter_for(spots.small())


def test_public_names():
    assert {"register_adapter", "DetectorAdapter", "StudentStep"} <= set(fgd_distill.__all__)


@pytest.mark.parametrize(
    ("name", "preset"), [("MyFasterRCNN", "two_stage"), ("YOLOX", "one_stage_anchor_free"), ("Fancy", None)]
)
def test_a_preset_by_the_classs_name_is_the_default(name, preset):
    model = type(name, (nn.Module,), {})()
    assert as_adapter(SixMethods(), model).preset(model) == preset
    assert guess_preset(model, "one_stage_anchor") == (preset or "one_stage_anchor")
