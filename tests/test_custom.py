import json
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import odediff
import solvers
from odediff import custom

TABLE = odediff.VPTable.linear()
STATE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Tiny(nn.Module):
    def __init__(self, channels=3, outputs=3):
        super().__init__()
        self.mix = nn.Conv2d(channels, outputs, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, time, label=None):
        shift = 0 if label is None else label.view(-1, 1, 1, 1)
        return self.drop(self.mix(x)) + time.view(-1, 1, 1, 1) + shift


class Tied(Tiny):
    def __init__(self):
        super().__init__()
        self.again = self.mix


def wide():
    return Tiny(outputs=6)


def broken():
    raise RuntimeError("no such\nfolder")


def number():
    return 3


class Wrapped(Tiny):
    def forward(self, x, time):
        return SimpleNamespace(sample=super().forward(x, time))


class Pair(Tiny):
    def forward(self, x, time):
        return None, super().forward(x, time)


class Keyed(Tiny):
    def forward(self, x, time):
        return {"eps": super().forward(x, time)}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The factories of this file, under a name that `import` finds."""
    monkeypatch.setitem(sys.modules, "practitioner", sys.modules[__name__])
    for network in (Tiny, Tied, Wrapped, Pair, Keyed):
        monkeypatch.setattr(network, "__module__", "practitioner")


def saved(network, path):
    save_file(network.state_dict(), path)
    return path


def predicted(model, t=0.5):
    return model.predict(model.path.node(t), STATE).eps


@pytest.mark.parametrize("factory", ["practitioner:Tiny", "practitioner.Tiny"])
def test_the_loaded_network_is_the_saved_one_in_eval_mode(tmp_path, factory):
    network = Tiny()
    model = custom.load(factory, saved(network, tmp_path / "tiny.safetensors"), schedule=TABLE)
    torch.testing.assert_close(predicted(model), network.eval()(STATE, torch.full((2,), 499.0)), rtol=0, atol=0)
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())


def test_the_declaration_reaches_the_model():
    declared = dict(
        prediction="v",
        integer_time=True,
        continuous=True,
        conditions={"label": 1},
        null={"label": 0},
        guidance=2.0,
        threshold=odediff.StaticThreshold(),
        chunk=3,
    )
    model = custom.load("practitioner:Tiny", schedule=TABLE, dtype=torch.float64, **declared)
    assert model.path is TABLE and {name: getattr(model, name) for name in declared} == declared
    assert {p.dtype for p in model.network.parameters()} == {torch.float64}


def test_weights_of_half_precision_are_widened(tmp_path):
    half = Tiny().half()
    model = custom.load("practitioner:Tiny", saved(half, tmp_path / "half.safetensors"), schedule=TABLE)
    assert torch.equal(model.network.mix.weight, half.mix.weight.float())


def test_tied_weights_are_stored_once_and_fill_both_names(tmp_path):
    network = Tied()
    save_model(network, tmp_path / "tied.safetensors")
    model = custom.load("practitioner:Tied", tmp_path / "tied.safetensors", schedule=TABLE)
    assert torch.equal(model.network.again.weight, network.mix.weight)


def test_building_a_network_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    custom.load("practitioner:Tiny", schedule=TABLE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("scale", "offset", "t", "told"),
    [(None, 0.0, 0.25, 249.0), (1000.0, 0.0, 0.25, 250.0), (1.0, 0.0, 0.25, 0.25), (-1.0, 1.0, 0.25, 0.75)],
)
def test_the_network_is_told_the_time_in_its_own_convention(scale, offset, t, told):
    heard = []
    model = custom.load("practitioner:Tiny", schedule=TABLE, time_scale=scale, time_offset=offset)
    model.network.register_forward_hook(lambda network, given, output: heard.append(given[1]))
    predicted(model, t)
    assert heard[0].tolist() == [told, told]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_time_of_a_shifted_flow_is_its_noise_level(shift):
    path, heard = odediff.RectifiedFlow(shift), []
    model = custom.load("practitioner:Tiny", schedule=path, prediction="flow", time_scale=-1.0, time_offset=1.0)
    model.network.register_forward_hook(lambda network, given, output: heard.append(given[1]))
    predicted(model, 0.25)
    torch.testing.assert_close(heard[0], torch.full((2,), 1 - path.sigma(0.25)))


def test_whole_times_are_exact_for_every_entry():
    clock = custom.Clock(1000.0, -1.0)
    entries = np.arange(1, 1001)
    np.testing.assert_array_equal(clock(entries / 1000), entries - 1.0)
    assert all(type(clock(n / 1000)) is float and clock(n / 1000) == n - 1 for n in entries.tolist())


@pytest.mark.parametrize(
    ("factory", "output"), [("practitioner:Wrapped", "sample"), ("practitioner:Pair", 1), ("practitioner:Keyed", "eps")]
)
def test_one_part_of_what_the_network_returns_is_the_prediction(tmp_path, factory, output):
    weights = saved(Tiny(), tmp_path / "tiny.safetensors")
    model = custom.load(factory, weights, schedule=TABLE, output=output)
    plain = custom.load("practitioner:Tiny", weights, schedule=TABLE)
    assert torch.equal(predicted(model), predicted(plain))


def test_learned_variances_are_dropped():
    model = custom.load("practitioner:wide", schedule=TABLE, learned_variance=True)
    both = model.network.network(STATE, torch.full((2,), 499.0))
    assert torch.equal(predicted(model), both[:, :3])


@pytest.mark.parametrize("network", [lambda x, t: {"sample": x}, torch.nn.Linear(2, 2).forward, torch.nn.Linear])
def test_a_part_is_selected_from_a_module_alone(network):
    # The weights that a function holds would neither set the precision nor be told apart when a code is decoded.
    with pytest.raises(TypeError, match=r"network=.* must be a torch.nn.Module.*let a function select the part"):
        custom.Selected(network, "sample")


def test_a_network_of_diffusers_is_one_declaration_away():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    sys.modules["practitioner"].unet = lambda: unet
    model = custom.load("practitioner:unet", schedule=TABLE, output="sample", integer_time=True)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.predict(TABLE.node(0.25), x).eps, unet(x, 249).sample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "logits"}, "output='logits' is not a part of the Tensor"),
        ({"output": 7}, "output=7 is not a part of the Tensor"),
        ({"learned_variance": True}, r"expects 6 channels for a state of \(2, 3, 4, 4\).*returned \(2, 3, 4, 4\)"),
    ],
)
def test_an_output_that_is_not_there_is_named_when_the_network_is_called(options, message):
    model = custom.load("practitioner:Tiny", schedule=TABLE, **options)
    with pytest.raises(ValueError, match=message):
        predicted(model)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Tiny", "write it as package.module:build"),
        (":Tiny", "write it as package.module:build"),
        ("no_such_package.build", "no module no_such_package; .*PYTHONPATH"),
        ("odediff.no_such_module:build", "no module odediff.no_such_module"),
        ("practitioner:tiny", "has no tiny; it defines"),
        ("practitioner:TABLE", "is a VPTable; name a function"),
        ("practitioner:number", "returned a int; it must return a torch.nn.Module"),
        ("practitioner:broken", "failed when called without arguments: RuntimeError: no such;"),
        ("practitioner:saved", "failed when called without arguments: TypeError"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named_in_one_line(factory, message):
    with pytest.raises(ValueError, match=message) as caught:
        custom.load(factory, schedule=TABLE)
    assert "\n" not in str(caught.value) and repr(factory) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import package_of_somebody", "importing faulty needs package_of_somebody"),
        ("1 +", "importing faulty failed: SyntaxError"),
        ("raise OSError('no licence')", "importing faulty failed: OSError: no licence"),
    ],
)
def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch, source, message):
    (tmp_path / "faulty.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        custom.load("faulty:build", schedule=TABLE)


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match="save_file.*weights_only=True"):
        custom.load("practitioner:Tiny", tmp_path / "tiny.pt", schedule=TABLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mix.bias"), "the file lacks mix.bias"),
        (lambda state: state.update(extra=torch.zeros(1), more=torch.zeros(1)), "has unexpected extra, more"),
        (lambda state: state.update({"mix.bias": torch.zeros(7)}), r"has mix.bias \(7,\) instead of \(3,\)"),
        (lambda state: state.update({f"k{i}": torch.zeros(1) for i in range(9)}), "k0, k1, k2 and 6 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_copied(tmp_path, change, message):
    state = {name: value.clone() for name, value in Tiny().state_dict().items()}
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    network = Tiny()
    before = network.mix.weight.clone()
    with pytest.raises(ValueError, match=message):
        custom.load_weights(network, tmp_path / "other.safetensors")
    assert torch.equal(network.mix.weight, before)


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be read.*check the path"):
        custom.load("practitioner:Tiny", tmp_path / "absent.safetensors", schedule=TABLE)
    whole = saved(Tiny(), tmp_path / "tiny.safetensors").read_bytes()
    for length in (0, 5, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or not a safetensors file") as caught:
            custom.load("practitioner:Tiny", tmp_path / "cut.safetensors", schedule=TABLE)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "linear"}, TypeError, "schedule='linear' is not a schedule"),
        ({"prediction": "noise"}, ValueError, "prediction='noise' is unknown"),
        ({"guidance": 2.0}, ValueError, "needs null"),
        (
            {"time_offset": 1.0},
            ValueError,
            "time_offset=1.0 needs time_scale.* give time_scale=T, time_offset=0",
        ),
        ({"time_scale": 0.0}, ValueError, "time_scale=0.0"),
        ({"time_scale": float("nan")}, ValueError, "time_scale=nan"),
        ({"device": "gpu"}, ValueError, "device=gpu is unknown; use cpu"),
        ({"device": "xpu"}, ValueError, "device=xpu is not available on this machine; found: cpu"),
        ({"dtype": "float32"}, TypeError, "dtype='float32' is not a floating-point dtype.*torch.float32"),
        ({"dtype": torch.int8}, TypeError, "dtype=torch.int8 is not a floating-point dtype"),
    ],
)
def test_a_wrong_declaration_is_refused_before_the_network_is_built(options, error, message):
    with pytest.raises(error, match=message):
        custom.load("practitioner:broken", **{"schedule": TABLE, **options})


def test_a_table_is_read_from_json_and_npy(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(TABLE.alphas_cumprod.tolist()))
    np.save(tmp_path / "table.npy", TABLE.alphas_cumprod)
    assert custom.table_from_file(tmp_path / "table.json") == custom.table_from_file(tmp_path / "table.npy") == TABLE


def test_a_table_file_that_cannot_be_used_is_named(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.json").write_text("[0.9, ")
    (tmp_path / "words.json").write_text('{"alphas_cumprod": [0.9]}')
    (tmp_path / "table.csv").write_text("0.9, 0.5")
    for name in ("objects.npy", "broken.json", "words.json", "table.csv", "absent.npy"):
        with pytest.raises(ValueError, match=f"{name}.*give a .json list or a .npy array") as caught:
            custom.table_from_file(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "rising.json").write_text("[0.1, 0.9]")
    with pytest.raises(ValueError, match="least noise first"):
        custom.table_from_file(tmp_path / "rising.json")


def test_the_readmes_network_of_diffusers_is_sampled():
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    pipe = SimpleNamespace(unet=unet, scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear"))
    scope = {"odediff": odediff, "pipe": pipe, "text": torch.randn(2, 7, 8), "empty": torch.randn(1, 7, 8)}
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    lines = re.search(r"^    unet, scheduler = .*?(?=\n\n)", readme, flags=re.MULTILINE | re.DOTALL)
    exec(compile(textwrap.dedent(lines[0]), "README.md", "exec"), scope)
    assert scope["latents"].shape == (2, 4, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_readmes_transformer_follows_the_scheduler_of_diffusers(dtype):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=12,
    ).to(dtype).eval()  # fmt: skip
    scope = {"pipe": SimpleNamespace(transformer=transformer)}
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    lines = re.search(r"^    transformer = .*?(?=\n\nConditions)", readme, flags=re.MULTILINE | re.DOTALL)
    exec(compile(textwrap.dedent(lines[0]), "README.md", "exec"), scope)
    condition = {"encoder_hidden_states": torch.randn(2, 5, 16), "pooled_projections": torch.randn(2, 12)}
    condition = {name: value.to(dtype) for name, value in condition.items()}
    path = odediff.RectifiedFlow(shift=3, time_scale=1000)
    model = odediff.Model(scope["network"], path, prediction="flow", conditions=condition)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    x = noise = torch.randn(2, 4, 8, 8)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = transformer(hidden_states=x.to(dtype), timestep=t.expand(2), **condition).sample
        x = scheduler.step(output.float(), t, x).prev_sample
    levels = scheduler.sigmas.double().numpy()
    times = [1.0, *path.time(np.log(1 / levels[1:-1] - 1)), 0.0]
    found = odediff.sample(model, noise=noise, grid=torch.tensor(times, dtype=torch.float64), solver=solvers.DDIM())
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.02)


def test_a_transformer_of_diffusers_that_keeps_parts_in_float32_is_called_in_its_own_precision():
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ).bfloat16().eval()  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if any(kept in name for kept in transformer._keep_in_fp32_modules):  # as from_pretrained does
            parameter.data = parameter.data.float()
    text = torch.randn(2, 6, 8, dtype=torch.bfloat16)
    network, path = custom.Selected(transformer, "sample"), odediff.RectifiedFlow(shift=5, time_scale=1000)
    model = odediff.Model(network, path, "flow", {"encoder_hidden_states": text})
    assert odediff.sample(model, (2, 4, 2, 4, 4), steps=3).isfinite().all()
