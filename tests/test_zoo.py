import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from odediff import metrics, zoo
from odediff.zoo import dataset, export, train_classifier, train_network, training
from odediff.zoo.assets import MANIFEST, WEIGHTS, load_network, read
from odediff.zoo.convnet import Classifier
from odediff.zoo.unet import NULL_LABEL, UNet

ASSETS = ["classifier.safetensors", "features.safetensors", "network.safetensors", "test_images.safetensors"]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(WEIGHTS, tmp_path / "weights"))


def test_manifest_describes_every_shipped_file():
    manifest = json.loads((WEIGHTS / MANIFEST).read_text())
    assert sorted(manifest) == ASSETS
    assert {path.name for path in WEIGHTS.iterdir()} == {*ASSETS, MANIFEST, "LICENSE"}
    for name, entry in manifest.items():
        content = (WEIGHTS / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_sizes_stay_within_their_limits():
    assert sum(p.numel() for p in UNet().parameters()) <= 3_000_000
    assert sum(p.numel() for p in Classifier().parameters()) <= 300_000
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 6_000_000


@pytest.mark.parametrize("name", ["network.safetensors", "classifier.safetensors"])
def test_weights_are_stored_in_float16(name):
    assert {v.dtype for v in read(name).values() if v.is_floating_point()} == {torch.float16}


@pytest.mark.parametrize("name", ASSETS)
def test_a_missing_asset_is_named_with_the_remedy(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing; reinstall odediff"):
        read(name, folder)


@pytest.mark.parametrize("name", ASSETS)
def test_a_truncated_asset_is_named_with_the_remedy(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"{name} has {len(content) - 1} bytes instead of {len(content)}; reinstall"):
        read(name, folder)


@pytest.mark.parametrize("position", [0, 9, 5000, -1])
def test_one_altered_byte_is_found(folder, position):
    content = bytearray((folder / "network.safetensors").read_bytes())
    content[position] ^= 1
    (folder / "network.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"network.safetensors is altered: its SHA-256 .*; reinstall odediff"):
        load_network(UNet, "network.safetensors", folder)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"network.safetensors": {}}', b"\xff"])
def test_an_unusable_manifest_is_named_with_the_remedy(folder, content):
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest.json does not describe network.safetensors .*; reinstall odediff"):
        read("network.safetensors", folder)


def test_classifier_recognises_the_shipped_images_beyond_its_required_accuracy():
    images, labels = zoo.test_images()
    assert metrics.class_accuracy(images, labels, zoo.classifier()) >= 0.91


def test_classifier_head_reads_the_features():
    network, (images, _) = zoo.classifier(), zoo.test_images()
    features = network.features(images[:5])
    assert features.shape == (5, 96)
    torch.testing.assert_close(network(images[:5]), network.head(features))


def test_test_images_are_balanced_real_and_in_range():
    images, labels = zoo.test_images()
    assert images.shape == (1000, 1, 28, 28) and images.dtype == torch.float32
    assert images.amin() == -1 and images.amax() == 1
    assert torch.equal(labels, torch.arange(10).repeat(100))
    rows = read("test_images.safetensors")["rows"]
    assert (rows.view(100, 10).diff(dim=0) > 0).all() and rows.max() < 10_000
    assert images.flatten(1).unique(dim=0).shape[0] == 1000


def test_feature_statistics_describe_the_shipped_images():
    mean, covariance = zoo.feature_statistics()
    assert mean.dtype == covariance.dtype == torch.float64
    assert torch.equal(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).amin() > 0
    images, _ = zoo.test_images()
    features = zoo.classifier().features(images)
    to_all = metrics.frechet_distance(*metrics.feature_statistics(features), mean, covariance)
    noisy = zoo.classifier().features(
        images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    )
    assert to_all < 0.01 * covariance.trace()
    assert metrics.frechet_distance(*metrics.feature_statistics(noisy), mean, covariance) > 4 * to_all
    assert 0 < read("features.safetensors")["real_distance"] < to_all


def test_network_is_frozen_finite_and_reproducible():
    model, again = zoo.fashion_mnist(), zoo.fashion_mnist()
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    time, label = torch.tensor([0.0, 499.5, 999.0]), torch.tensor([0, 9, NULL_LABEL])
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())
    output = model.network(x, time, label)
    assert output.shape == x.shape and output.isfinite().all() and not output.requires_grad
    assert torch.equal(output, again.network(x, time, label))


def test_network_in_float64_computes_with_the_same_rounded_weights():
    single, double = zoo.fashion_mnist().network, zoo.fashion_mnist(dtype=torch.float64).network
    for narrow, wide in zip(single.parameters(), double.parameters(), strict=True):
        assert wide.dtype == torch.float64 and torch.equal(narrow.double(), wide)
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    time, label = torch.tensor([10.0, 700.0]), torch.tensor([2, NULL_LABEL])
    torch.testing.assert_close(
        double(x.double(), time.double(), label).float(), single(x, time, label), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("label", [-1, NULL_LABEL + 1, 3.0, torch.tensor([0, 99])])
def test_a_label_that_is_no_class_is_refused_before_the_network_is_asked(label):
    with pytest.raises(ValueError, match=r"label=.* must be a whole number from 0 to 9.* or 10 for none"):
        zoo.fashion_mnist().condition(label=label)


def test_labels_and_null_label_change_the_prediction():
    network = zoo.fashion_mnist().network
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)).expand(11, -1, -1, -1)
    outputs = network(x, torch.full((11,), 900.0), torch.arange(11)).flatten(1)
    assert torch.pdist(outputs).amin() > 1e-3


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    zoo.fashion_mnist()
    zoo.classifier()
    assert torch.equal(torch.get_rng_state(), state)


def network_run(checkpoint: Path) -> torch.nn.Module:
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    recipe = train_network.Recipe(steps=4, batch=4, warmup=2, save_every=2)
    return train_network.train(*synthetic(), table, recipe, checkpoint)


def classifier_run(checkpoint: Path) -> torch.nn.Module:
    recipe = train_classifier.Recipe(steps=4, batch=4, warmup=2, save_every=2)
    return train_classifier.train(*synthetic(), recipe, checkpoint)


def synthetic() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten images, so that the four batches of four span two epochs."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(10, 1, 28, 28, generator=generator) - 1, torch.arange(10)


@pytest.mark.parametrize("run", [network_run, classifier_run])
def test_training_that_was_interrupted_ends_with_the_same_bits(run, tmp_path, monkeypatch):
    unbroken = run(tmp_path / "unbroken.safetensors")

    def save_and_stop(*arguments, **modules):
        save_checkpoint(*arguments, **modules)
        raise KeyboardInterrupt

    save_checkpoint = training.save_checkpoint
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_checkpoint", save_and_stop)
        run(tmp_path / "broken.safetensors")
    assert load_file(tmp_path / "broken.safetensors")["step"] == 2
    torch.rand(7)  # a resumed run must not depend on the global generator
    resumed = run(tmp_path / "broken.safetensors")

    assert (tmp_path / "broken.safetensors").read_bytes() == (tmp_path / "unbroken.safetensors").read_bytes()
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert not list(tmp_path.glob("*.partial"))


def write_idx(root: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    (root / "t10k-images-idx3-ubyte").write_bytes(bytes(16) + images.numpy().tobytes())
    (root / "t10k-labels-idx1-ubyte").write_bytes(bytes(8) + labels.byte().numpy().tobytes())


def test_export_writes_what_the_loader_accepts_and_the_same_bytes_again(tmp_path, monkeypatch):
    network_run(tmp_path / "network")
    classifier_run(tmp_path / "classifier")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1500, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (1500,), generator=generator)
    write_idx(tmp_path, images, labels)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        monkeypatch.setitem(dataset.CHECKSUMS, name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())

    folders = [tmp_path / "first", tmp_path / "second"]
    for out in folders:
        export.export(tmp_path, tmp_path / "network", tmp_path / "classifier", out)
    for name in (*ASSETS, MANIFEST):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    average = {k: v for k, v in load_file(tmp_path / "network").items() if k.startswith("average.")}
    exported = read("network.safetensors", folders[0])
    assert len(average) == len(exported)
    assert all(torch.equal(average[f"average.{k}"].half(), v) for k, v in exported.items())
    chosen = read("test_images.safetensors", folders[0])
    assert torch.equal(chosen["images"], images[chosen["rows"]]) and torch.equal(
        chosen["labels"], labels[chosen["rows"]]
    )
    network = load_network(Classifier, "classifier.safetensors", folders[0])
    mean, _ = metrics.feature_statistics(network.features(dataset.to_network(images)))
    torch.testing.assert_close(read("features.safetensors", folders[0])["mean"], mean, rtol=1e-5, atol=1e-6)


def test_export_refuses_missing_and_exchanged_checkpoints_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "load", lambda root, split: (torch.zeros(10, 1, 28, 28), torch.arange(10)))
    classifier_run(tmp_path / "classifier")
    with pytest.raises(ValueError, match="network is missing"):
        export.export(tmp_path, tmp_path / "network", tmp_path / "classifier", tmp_path / "out")
    with pytest.raises(ValueError, match="holds no tensor average"):
        export.export(tmp_path, tmp_path / "classifier", tmp_path / "classifier", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dataset_reads_published_idx_files_gzipped_or_not_and_refuses_others(tmp_path):
    with pytest.raises(ValueError, match=r"data.root=.* holds neither t10k-images-idx3-ubyte nor"):
        dataset.load(tmp_path, "test")
    write_idx(tmp_path, torch.zeros(2, 28, 28, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte has SHA-256"):
        dataset.load(tmp_path, "test")


@pytest.mark.parametrize(
    "label", [[3, 3], (3, 3), torch.tensor([3, 3], dtype=torch.uint8), torch.tensor(3, dtype=torch.int16).numpy()]
)
def test_labels_may_be_given_in_any_form(label):
    model, x = zoo.fashion_mnist(), torch.zeros(2, 1, 28, 28)
    node = model.path.node(0.5)
    with torch.no_grad():
        expected = model.condition(label=3).predict(node, x).eps
        assert torch.equal(model.condition(label=label).predict(node, x).eps, expected)


def test_no_label_is_named():
    with pytest.raises(ValueError, match="label=None must be a whole number"):
        zoo.fashion_mnist().condition(label=None)


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoint = tmp_path / "network.safetensors"
    classifier_run(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"network\.safetensors is truncated .*delete it to train anew"):
        classifier_run(checkpoint)
