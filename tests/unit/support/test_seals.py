"""Seals of folders, of files that grow, and of JSON documents."""

import json
import os

import pytest

from brim.errors import RunError
from brim.runs.directory import RunDirectory
from brim.support.files import atomic_write_json, read_json, write_sealed_json
from brim.support.seals import (
    find_damage,
    is_sealed,
    seal,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(range(200)))
    (tmp_path / "inner" / "config.json").write_text('{"a": 1}')
    seal(tmp_path, {"step": 3})
    return tmp_path


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sealed_folder_is_sound_and_says_what_it_was_sealed_with(folder):
    assert is_sealed(folder)
    assert find_damage(folder) is None
    assert read_json(folder / "manifest.json")["step"] == 3


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors has another SHA"),
        (lambda folder: os.truncate(folder / "model.safetensors", 9), "9 bytes instead of 200"),
        (lambda folder: (folder / "inner/config.json").unlink(), "inner/config.json is missing"),
        (lambda folder: flip(folder / "manifest.json"), "manifest.json"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": 3}'), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"a": 3}}'), "a is miss"),
    ],
)
def test_damage_is_named(folder, damage, named):
    damage(folder)
    assert named in find_damage(folder)


def test_only_the_files_that_are_wanted_are_compared(folder):
    flip(folder / "model.safetensors")
    assert find_damage(folder, lambda name: name.endswith(".json")) is None


def test_the_manifest_of_another_program_is_no_seal(folder):
    (folder / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    assert not is_sealed(folder)
    (folder / "manifest.json").unlink()
    assert not is_sealed(folder)


DOCUMENTS = [{}, {"a": [1, 0.1, None, "é\u2028"], "b": {"sha256": "of something"}}, {"x": 1e-300}]


@pytest.mark.parametrize("value", DOCUMENTS)
def test_a_sealed_document_is_read_as_it_was_written(tmp_path, value):
    write_sealed_json(tmp_path / "a.json", value)
    atomic_write_json(tmp_path / "old.json", value)  # without a seal
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "old.json") == value
    assert json.loads((tmp_path / "a.json").read_text())["sha256"]


def test_another_number_in_a_sealed_document_is_seen_and_other_layout_is_not(tmp_path):
    path = tmp_path / "a.json"
    write_sealed_json(path, {"loss": 0.25, "step": 3})
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_json(path) == {"loss": 0.25, "step": 3}
    path.write_text(path.read_text().replace("0.25", "0.26"))
    with pytest.raises(RunError, match=r"a\.json: damaged: its content"):
        read_json(path)


def test_every_flipped_bit_of_a_manifest_is_seen(tmp_path):
    path = tmp_path / "manifest.json"
    write_sealed_json(path, {"config_hash": "a", "config_sha256": "b", "num_processes": 1})
    whole = path.read_bytes()
    assert RunDirectory(tmp_path).manifest()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(RunError):
            RunDirectory(tmp_path).manifest()
