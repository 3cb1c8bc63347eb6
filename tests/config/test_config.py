"""Configurations: merging, checked construction, messages a person can act on."""

from __future__ import annotations

import logging
import os
import sys
import types
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

from ldm import config as config_module
from ldm.config import (
    allow_target,
    get_obj_from_str,
    instantiate_from_config,
    load_config,
    section_at,
    targets,
    to_plain,
    value_at,
)
from ldm.errors import UserError, nearest


class Base:
    def __init__(self, width: int, depth: int = 1) -> None:
        self.width, self.depth = width, depth


class Child(Base):
    def __init__(self, colour: str = "red", nested: dict | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.colour, self.nested = colour, nested


class Net(nn.Module):
    def __init__(self, size: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.size = size


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """A module ``toys`` that configurations may name, for one test."""
    module = types.ModuleType("toys")
    for thing in (Base, Child, Net):
        monkeypatch.setattr(thing, "__module__", "toys")
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "toys", module)
    monkeypatch.setattr(targets, "ALLOWED_PREFIXES", {*targets.ALLOWED_PREFIXES, "toys"})


def write(path, text):
    path.write_text(text)
    return path


# --- reading --------------------------------------------------------------------------------------------------------


def test_later_files_and_settings_win(tmp_path):
    first = write(tmp_path / "a.yaml", "model:\n  params: {x: 1, y: 1, z: 1}\n")
    second = write(tmp_path / "b.yaml", "model:\n  params: {y: 2, z: 2}\n")
    merged = load_config([first, str(second)], ["model.params.z=3", "model.params.lr=5e-7", "model.params.on=true"])
    assert to_plain(merged) == {"model": {"params": {"x": 1, "y": 2, "z": 3, "lr": 5e-7, "on": True}}}


def test_scientific_notation_without_a_dot_is_a_number(tmp_path):
    assert load_config([write(tmp_path / "a.yaml", "lr: 5e-7\n")]).lr == 5e-7


def test_a_nested_value_or_none():
    values = {"a": {"b": {"c": 1}}, "d": 2}
    assert (value_at(values, "a", "b", "c"), value_at(values, "a"), value_at(values)) == (1, values["a"], values)
    assert [value_at(values, *keys) for keys in (("a", "x"), ("d", "b"), ("x", "b", "c"))] == [None] * 3


def test_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path / "mnist.yaml", "a: 1\n")
    with pytest.raises(UserError, match="does not exist; did you mean 'mnist.yaml'"):
        load_config([tmp_path / "minst.yaml"])


def test_broken_yaml_names_file_and_line(tmp_path):
    path = write(tmp_path / "a.yaml", "model:\n  params:\n    x: [1, 2\n  y: 3\n")
    with pytest.raises(UserError, match=r"a\.yaml', line 4"):
        load_config([path])


def test_a_list_is_no_configuration(tmp_path):
    with pytest.raises(UserError, match="not a list"):
        load_config([write(tmp_path / "a.yaml", "- 1\n- 2\n")])


def test_a_file_is_laid_over_its_bases_which_are_named_relative_to_it(tmp_path):
    (tmp_path / "common").mkdir()
    write(
        tmp_path / "common" / "size.yaml",
        "model: {params: {width: 1, depth: 1, colour: '???'}}\ndata: {n: '${size}'}\n",
    )
    write(tmp_path / "middle.yaml", "base: common/size.yaml\nmodel: {params: {width: 2, depth: 2}}\nsize: 3\n")
    write(tmp_path / "other.yaml", "model: {params: {depth: 4}}\n")
    top = write(tmp_path / "top.yaml", "base: [middle.yaml, other.yaml]\nmodel: {params: {width: 9}}\n")
    after = write(tmp_path / "after.yaml", "model: {params: {width: 10}}\n")
    for files, width in (([top], 9), ([top, after], 10)):
        loaded = load_config(files, ["model.params.colour=blue"])
        params = {"width": width, "depth": 4, "colour": "blue"}
        assert to_plain(loaded) == {"model": {"params": params}, "data": {"n": 3}, "size": 3}


def test_parameters_belong_to_their_target(tmp_path):
    write(
        tmp_path / "below.yaml", "a: {target: x.A, params: {p: 1, q: 1}}\nb: {target: x.B, params: {p: 1}}\nc: {d: 1}\n"
    )
    top = write(
        tmp_path / "top.yaml", "base: below.yaml\na: {target: x.Z, params: {p: 2}}\nb: {params: {r: 2}}\nc: null\n"
    )
    assert to_plain(load_config([top])) == {
        "a": {"target": "x.Z", "params": {"p": 2}},
        "b": {"target": "x.B", "params": {"p": 1, "r": 2}},
        "c": None,
    }


def test_bases_in_a_circle_are_refused(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(UserError, match=r"b\.yaml' names the base .*a\.yaml', which builds on it"):
        load_config([tmp_path / "a.yaml"])


def test_two_files_may_share_a_base(tmp_path):
    write(tmp_path / "shared.yaml", "x: 1\ny: 1\n")
    for name in ("a", "b"):
        write(tmp_path / f"{name}.yaml", f"base: shared.yaml\n{name}: 1\n")
    top = write(tmp_path / "top.yaml", "base: [a.yaml, b.yaml]\n")
    assert to_plain(load_config([top])) == {"x": 1, "y": 1, "a": 1, "b": 1}


@pytest.mark.parametrize(("base", "message"), [("absent.yaml", "absent.yaml' does not exist"), ("{a: 1}", "file name")])
def test_a_base_that_cannot_be_read_is_named(tmp_path, base, message):
    with pytest.raises(UserError, match=message):
        load_config([write(tmp_path / "top.yaml", f"base: {base}\n")])


@pytest.mark.parametrize("entry", ["model.params.x", "=3", "--modle"])
def test_settings_need_a_key_and_a_value(entry):
    with pytest.raises(UserError, match=r"not a setting; type key\.path=value"):
        load_config([], [entry])


def test_unreadable_setting_is_named():
    with pytest.raises(UserError, match=r"cannot read the setting 'a=\[1'"):
        load_config([], ["a=[1"])


def test_mandatory_value_is_named_with_its_full_key():
    config = OmegaConf.create({"model": {"target": "toys.Base", "params": {"width": 1, "depth": "???"}}})
    with pytest.raises(UserError, match=r"'model\.params\.depth' has no value yet"):
        instantiate_from_config(config.model)


def test_mandatory_value_is_found_in_plain_dicts_too():
    with pytest.raises(UserError, match=r"'params\.nested\.ckpt_path' has no value"):
        instantiate_from_config({"target": "toys.Child", "params": {"width": 1, "nested": {"ckpt_path": "???"}}})


def test_interpolations_reach_outside_the_section_and_bad_ones_are_named():
    config = load_config([], ["w=7", "m.target=toys.Base", "m.params.width=${w}"])
    assert instantiate_from_config(config.m).width == 7
    config = load_config([], ["m.target=toys.Base", "m.params.width=${nowhere}"])
    with pytest.raises(UserError, match=r"cannot resolve 'm\.params\.width'"):
        instantiate_from_config(config.m)


# --- building -------------------------------------------------------------------------------------------------------


def test_nested_sections_arrive_as_plain_dicts_unbuilt():
    nested = {"target": "toys.Base", "params": {"width": 3}}
    config = OmegaConf.create({"target": "toys.Child", "params": {"width": 1, "nested": nested}})
    built = instantiate_from_config(config)
    assert type(built.nested) is dict and built.nested == nested
    assert type(built.nested["params"]) is dict


def test_extra_arguments_win():
    built = instantiate_from_config({"target": "toys.Base", "params": {"width": 1, "depth": 1}}, depth=9)
    assert built.depth == 9


def test_unknown_parameter_names_the_nearest():
    with pytest.raises(UserError, match=r"toys\.Base has no parameter 'witdh'; did you mean 'width'"):
        instantiate_from_config({"target": "toys.Base", "params": {"witdh": 1}})


def test_parameters_behind_kwargs_are_checked_against_the_base_class():
    assert instantiate_from_config({"target": "toys.Child", "params": {"width": 1, "depth": 2}}).depth == 2
    with pytest.raises(UserError, match="no parameter 'dept'; did you mean 'depth'"):
        instantiate_from_config({"target": "toys.Child", "params": {"width": 1, "dept": 2}})
    with pytest.raises(UserError, match="no parameter 'sizes'; did you mean 'size'"):
        instantiate_from_config({"target": "toys.Net", "params": {"size": 1, "sizes": 2}})


def test_absent_parameter_is_named():
    with pytest.raises(UserError, match=r"toys\.Base needs the parameter 'width'"):
        instantiate_from_config({"target": "toys.Base"})


@pytest.mark.parametrize("config", ["__is_unconditional__", None, {"params": {}}, {"target": 3}])
def test_what_is_no_section_is_refused(config):
    with pytest.raises(UserError, match="expected a section with a 'target'"):
        instantiate_from_config(config)


def test_misplaced_key_is_named():
    with pytest.raises(UserError, match="unknown key 'parms' next to target 'toys.Base'; did you mean 'params'"):
        instantiate_from_config({"target": "toys.Base", "parms": {"width": 1}})


def test_retired_parameters_go_with_one_warning(monkeypatch, caplog):
    monkeypatch.setitem(config_module.RETIRED, "toys.Base", {"mask": "unused", "other": "unused", "depth": "unused"})
    with caplog.at_level(logging.WARNING, logger="ldm.config"):
        built = instantiate_from_config(
            {"target": "toys.Base", "params": {"width": 1, "mask": 0, "other": 1, "depth": 5}}
        )
    assert built.depth == 5, "a parameter the class takes is never dropped"
    assert len(caplog.records) == 1 and "mask" in caplog.text and "other" in caplog.text


def test_what_a_class_decides_itself_is_no_parameter(monkeypatch):
    monkeypatch.setattr(Child, "FIXED_OPTIONS", ("depth", "colour"), raising=False)
    known, _, _ = config_module.accepted_parameters(Child)
    assert known == {"width", "colour", "nested"}, "a parameter of its own stays one"
    with pytest.raises(UserError, match="no parameter 'depth'"):
        instantiate_from_config({"target": "toys.Child", "params": {"width": 1, "depth": 2}})


def test_torch_classes_can_be_built():
    assert instantiate_from_config({"target": "torch.nn.Linear", "params": {"in_features": 2, "out_features": 3}})
    assert instantiate_from_config({"target": "torch.nn.Identity"})


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "subprocess.Popen", "torchx.nn.Linear"])
def test_other_packages_are_refused(target):
    with pytest.raises(UserError, match="is not allowed"):
        get_obj_from_str(target)


@pytest.mark.parametrize("target", config_module.TAMING_ALIASES)
def test_classes_that_old_configurations_look_for_in_taming_are_ours(target, caplog):
    with caplog.at_level(logging.INFO, logger="ldm.config"):
        found = get_obj_from_str(target)
    assert issubclass(found, nn.Module) and found.__module__.partition(".")[0] in ("ldm", "torch")
    assert found.__name__ in (target.rpartition(".")[2], "Identity")
    assert len(caplog.records) == 1 and target in caplog.text and found.__name__ in caplog.text


def test_a_loss_of_taming_takes_its_published_parameters():
    params = {"disc_start": 1, "codebook_weight": 1.0, "disc_in_channels": 1, "disc_weight": 0.75, "disc_ndf": 8}
    target = "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    loss = instantiate_from_config({"target": target, "params": {**params, "perceptual_weight": 0.0}})
    assert loss.discriminator_weight == 0.75
    with pytest.raises(UserError, match="VQLPIPSWithDiscriminator has no parameter 'disc_wieght'"):
        instantiate_from_config({"target": target, "params": {"disc_start": 1, "disc_wieght": 1.0}})


@pytest.mark.parametrize(
    "target", ["taming.models.vqgan.VQModel", "taming.modules.losses.vqperceptual.torch", "taming.VectorQuantizer2"]
)
def test_other_names_of_taming_stay_refused(target):
    with pytest.raises(UserError, match="is not allowed"):
        get_obj_from_str(target)


@pytest.mark.parametrize("target", ["ldm.files.os", "ldm.files.Path", "ldm.config.ALLOWED_PREFIXES"])
def test_what_a_module_merely_imports_is_no_target(target):
    with pytest.raises(UserError, match="not something a configuration may build"):
        get_obj_from_str(target)


def test_functions_of_other_packages_are_refused():
    with pytest.raises(UserError, match="only classes"):
        get_obj_from_str("torch.load")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ldm.errors.UserErorr", "did you mean 'UserError'"),
        ("ldm.no_such_room.Thing", "no module 'ldm.no_such_room'"),
        ("main.ImageLoger", "did you mean 'main.ImageLogger'"),
        ("Linear", "not a dotted name"),
        ("ldm..errors", "not a dotted name"),
    ],
)
def test_names_that_do_not_exist(target, message):
    with pytest.raises(UserError, match=message):
        get_obj_from_str(target)


def test_a_module_that_fails_to_import_something_else_keeps_its_error(monkeypatch, tmp_path):
    (tmp_path / "needy.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(targets, "ALLOWED_PREFIXES", {"needy"})
    with pytest.raises(ModuleNotFoundError, match="package_that_nobody_has"):
        get_obj_from_str("needy.Thing")


def test_allow_target_opens_one_package(monkeypatch):
    monkeypatch.setattr(targets, "ALLOWED_PREFIXES", set())
    with pytest.raises(UserError, match="target 'toys.Base' is not allowed"):
        get_obj_from_str("toys.Base")
    allow_target("toys")
    assert get_obj_from_str("toys.Base") is Base


def test_names_in_main_resolve_without_a_main_module(monkeypatch):
    module = types.ModuleType("ldm.data.module")
    monkeypatch.setattr(Base, "__module__", "ldm.data.module")
    module.DataModuleFromConfig = Base
    monkeypatch.setitem(sys.modules, "ldm.data.module", module)
    assert get_obj_from_str("main.DataModuleFromConfig") is Base


def test_nearest_ignores_case_and_says_nothing_when_nothing_is_close():
    assert nearest("latentdiffusion", ["LatentDiffusion", "DDPM"]) == "; did you mean 'LatentDiffusion'?"
    assert nearest("zzz", ["LatentDiffusion", "DDPM"]) == ""


@pytest.mark.slow  # imports the trainer
def test_the_tables_of_names_agree_with_the_code():
    """A retired parameter that the class takes again, or a class that moved, would be a dead entry."""
    for target in (*config_module.MAIN_ALIASES, *config_module.TAMING_ALIASES, *config_module.RETIRED):
        known, _, _ = config_module.accepted_parameters(get_obj_from_str(target))
        assert not known & config_module.RETIRED.get(config_module.canonical_target(target), {}).keys(), target


ALIASES = "a0: &a0 [1,2,3,4,5,6,7,8,9,0]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "line 5: more than 20,000 values"),
        ("a: " + "[" * 400 + "]" * 400, "more than 64 levels deep"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "more than 64 levels deep"),
        ("{a: " * 20_000, "more than 64 levels deep"),
        ("a: " + "x" * 2**21, "larger than 1,048,576 bytes"),
        ("a: &a [1, *a]", "line 1: .*stands for what it is a part of"),
    ],
)
def test_yaml_is_bounded_before_it_is_built(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_config([tmp_path / "a.yaml"])
    assert "\n" not in str(caught.value)


def test_pipes_devices_and_links_that_lead_nowhere_are_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name, words in (("pipe", "pipe or a device"), ("zero", "pipe or a device"), ("loop", "cannot read")):
        with pytest.raises(UserError, match=words) as caught:
            load_config([tmp_path / f"{name}.yaml"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "model: 5\ndata: x", "data:\n  params: 3", "data:\n  params:\n    train: ???"])
def test_a_section_that_is_not_there_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    config = load_config([str(tmp_path / "a.yaml")])
    with pytest.raises(UserError, match="a.yaml: has no section 'data.params.train'; name a configuration"):
        section_at(config, "data.params.train", tmp_path / "a.yaml")
