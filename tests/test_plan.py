"""Plans are whole, cannot be changed, and come back from a file exactly or not at all."""

from __future__ import annotations

import json
import os
import stat
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import plans

import craftopt as co


def small_plan() -> co.Plan:
    return co.Plan.from_phy2log(
        [[0, 1, 0, 2], [2, 1, 0, -1]], gpus=2, experts=3, layer_ids=[4, 9], nodes=2, method="mine"
    )


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        ([[1, 1]], r"shape \(1, 2\)"),
        (np.ones((0, 1, 1), int), r"shape \(0, 1, 1\)"),
        (np.ones((1, 0, 1), int), r"shape \(1, 0, 1\)"),
        (np.ones((1, 1, 0), int), r"shape \(1, 1, 0\)"),
        (np.ones((1, 1, 1)), "whole numbers"),
        ([[["a"]]], "whole numbers"),
        ([[[-1, 1]]], "whole numbers in 0..255"),
        ([[[256, 1]]], "whole numbers in 0..255"),
        ([[[1, 0], [0, 0]]], "expert 1 of layer 0 is on no GPU"),
        ([[[1]], [[1, 1]]], "copies"),
    ],
)
def test_refuses_copies_that_are_no_plan(copies, message):
    with pytest.raises(co.InputError, match=message):
        co.Plan(copies)


@pytest.mark.parametrize("nodes", [0, -1, 2, 4, 1.5])
def test_refuses_nodes_that_do_not_divide_the_gpus(nodes):
    with pytest.raises(co.InputError, match="nodes"):
        co.Plan(np.ones((1, 2, 3), int), nodes=nodes)


@pytest.mark.parametrize("layer_ids", [[1], [1, 1], [1.0, 2.0], [2**63, 0]])
def test_refuses_layer_ids_that_do_not_name_the_layers(layer_ids):
    with pytest.raises(co.InputError, match="layer_ids"):
        co.Plan(np.ones((2, 2, 2), int), layer_ids)


@pytest.mark.parametrize(
    ("table", "gpus", "experts", "message"),
    [
        ([0, 1], 2, None, r"shape \(2,\)"),
        ([[]], 1, None, "shape"),
        ([[0.0, 1.0]], 2, None, "type float64"),
        ([[0, 1, 2]], 2, None, "3 slots do not divide into gpus=2"),
        ([[0, 1]], 0, None, "gpus=0"),
        ([[0, 1]], -2, None, "gpus=-2"),
        ([[0, -2]], 2, None, "-2"),
        ([[0, 3]], 2, 3, "must be -1"),
        ([[0, 1]], 2, 3, "every expert needs a copy"),
        ([[0, 1, 0, 1]], 2, 3, "expert 2 of layer 0 is on no GPU"),
        ([[0, 2]], 2, None, "every expert needs a copy"),
        ([[-1, -1]], 2, None, "copies"),
        ([[0] * 256], 1, None, "0..255"),
        ([[0, 1], [2]], 1, None, "phy2log"),
    ],
)
def test_from_phy2log_refuses_tables_that_are_no_plan(table, gpus, experts, message):
    with pytest.raises(co.InputError, match=message):
        co.Plan.from_phy2log(table, gpus=gpus, experts=experts)


def test_from_phy2log_refuses_a_huge_id_before_making_room_for_it():
    with pytest.raises(co.InputError):
        co.Plan.from_phy2log([[0, 10**13]], gpus=2)


# --- what is held ---------------------------------------------------------------------------


def test_counts_slots_replicas_and_duplicates():
    plan = co.Plan([[[2, 1], [0, 1], [1, 0]]])
    assert plan.replica_counts.tolist() == [[3, 1, 1]]
    assert plan.slots.tolist() == [[3, 2]]
    assert (plan.replicas, plan.duplicates) == (2, 1)
    assert (plan.layers, plan.experts, plan.gpus) == (1, 3, 2)


def test_counts_do_not_overflow_bytes():
    plan = co.Plan([[[200, 200, 200]]])
    assert plan.replica_counts.tolist() == [[600]]
    assert plan.replicas == 599
    assert plan.duplicates == 597


def test_arrays_are_copied_and_read_only():
    copies = np.ones((1, 2, 2), dtype=np.uint8)
    plan = co.Plan(copies)
    copies[:] = 0
    assert plan.copies.all()
    assert plan.copies.dtype == np.uint8
    for array in (plan.copies, plan.layer_ids, plan.replica_counts, plan.slots):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        plan.nodes = 2


def test_phy2log_lists_gpu_after_gpu_with_minus_one_for_empty_slots():
    plan = co.Plan([[[1, 0], [1, 0], [2, 1]], [[0, 1], [0, 1], [1, 0]]])
    assert plan.phy2log().tolist() == [
        [0, 1, 2, 2, 2, -1, -1, -1],
        [2, -1, -1, -1, 0, 1, -1, -1],
    ]
    assert plan.phy2log().dtype == np.int64


@given(plans())
def test_phy2log_and_from_phy2log_are_inverse(plan):
    again = co.Plan.from_phy2log(
        plan.phy2log(), plan.gpus, plan.experts, plan.layer_ids, plan.nodes, plan.method
    )
    assert again.copies.tolist() == plan.copies.tolist()
    assert again.phy2log().tolist() == plan.phy2log().tolist()
    assert again.layer_ids.tolist() == plan.layer_ids.tolist()


@given(plans())
def test_phy2log_holds_every_copy_where_the_plan_hosts_it(plan):
    rows = plan.phy2log().reshape(plan.layers, plan.gpus, -1).tolist()
    for layer, gpus in enumerate(rows):
        for gpu, row in enumerate(gpus):
            for expert in range(plan.experts):
                assert row.count(expert) == plan.copies[layer, expert, gpu]
            filled = [expert for expert in row if expert >= 0]
            assert row == sorted(filled) + [-1] * (len(row) - len(filled))


def test_empty_slots_may_stand_anywhere_in_the_engines_table():
    plan = co.Plan.from_phy2log([[-1, 0, 1, -1]], gpus=2)
    assert plan.slots.tolist() == [[1, 1]]


# --- JSON -----------------------------------------------------------------------------------


@given(plans())
def test_json_brings_back_the_same_plan(plan):
    text = plan.to_json()
    again = co.Plan.from_json(text)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.to_json() == text
    assert (again.nodes, again.method, again.loads_digest) == (
        plan.nodes,
        plan.method,
        plan.loads_digest,
    )


def test_json_names_its_format_and_version_and_has_a_line_per_layer():
    text = small_plan().to_json()
    document = json.loads(text)
    assert (document["format"], document["version"]) == ("craftopt-plan", 1)
    assert document["replicas"] == 1
    assert document["layers"][1] == {"layer_id": 9, "experts_of_gpu": [[1, 2], [0]]}
    assert sum("layer_id" in line for line in text.splitlines()) == 2


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_refuses_other_versions_by_number(version):
    document = json.loads(small_plan().to_json()) | {"version": version}
    with pytest.raises(co.FormatError, match="version"):
        co.Plan.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '"x"', "{}", '{"format": "other"}'])
def test_refuses_text_that_is_no_plan(text):
    with pytest.raises(co.FormatError):
        co.Plan.from_json(text)


def test_refuses_deep_nesting():
    with pytest.raises(co.FormatError):
        co.Plan.from_json("[" * 200_000)


@pytest.mark.parametrize(
    "damage",
    [
        {"gpus": 3},
        {"gpus": 0},
        {"gpus": -2},
        {"gpus": "2"},
        {"gpus": 2.5},
        {"experts": 2},
        {"experts": 4},
        {"experts": 0},
        {"experts": -3},
        {"experts": None},
        {"nodes": 0},
        {"nodes": 3},
        {"nodes": 1.5},
        {"nodes": "2"},
        {"replicas": 2},
        {"replicas": None},
        {"layers": []},
        {"layers": {}},
        {"layers": None},
        {"layers": "ab"},
        {"layers": [{"layer_id": 0}]},
        {"layers": [[], []]},
    ],
)
def test_refuses_a_plan_that_contradicts_itself(damage):
    document = json.loads(small_plan().to_json()) | damage
    with pytest.raises(co.FormatError, match="damaged"):
        co.Plan.from_json(json.dumps(document))


@pytest.mark.parametrize("expert", [0.0, -1, 3, "0", None, True, [0], 10**30, float("nan")])
def test_refuses_an_expert_that_is_no_id(expert):
    document = json.loads(small_plan().to_json())
    document["layers"][0]["experts_of_gpu"][0][0] = expert
    with pytest.raises(co.FormatError, match="damaged"):
        co.Plan.from_json(json.dumps(document))


@pytest.mark.parametrize("claim", [10**8, 10**9, 10**13, 10**18, 10**30])
@pytest.mark.parametrize("key", ["gpus", "experts", "nodes", "replicas"])
def test_refuses_a_huge_claim_without_making_room_for_it(key, claim):
    text = json.dumps(json.loads(small_plan().to_json()) | {key: claim})
    tracemalloc.start()
    try:
        with pytest.raises(co.FormatError, match="damaged"):
            co.Plan.from_json(text)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 4)
    | st.floats()
    | st.sampled_from([0.0, 1.0, 2.0, -1, 255, 256, 10**9, 10**13])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """List the paths to everything inside a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*path, key))


def assert_refused_or_whole(text):
    try:
        plan = co.Plan.from_json(text)
    except co.FormatError:
        return
    assert (plan.replica_counts >= 1).all()
    assert co.Plan.from_json(plan.to_json()) == plan


@given(plans(), st.data())
def test_a_changed_value_is_refused_or_a_whole_plan(plan, data):
    document = json.loads(plan.to_json())
    *path, last = data.draw(st.sampled_from([path for path in places(document) if path]))
    parent = document
    for key in path:
        parent = parent[key]
    if data.draw(st.booleans()):
        parent[last] = data.draw(JSON_VALUES)
    else:
        del parent[last]
    assert_refused_or_whole(json.dumps(document))


@given(plans(), st.data())
def test_changed_text_is_refused_or_a_whole_plan(plan, data):
    text = plan.to_json()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 9)))
    patch = data.draw(
        st.text(max_size=4)
        | st.text(alphabet='0123456789-.eE[]{},:" tfn', max_size=6)
        | st.just(text[: data.draw(st.integers(0, len(text)))])
    )
    assert_refused_or_whole(text[:start] + patch + text[end:])


# --- files ----------------------------------------------------------------------------------


def test_save_writes_the_json_and_nothing_else(tmp_path):
    plan = small_plan()
    plan.save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert co.Plan.from_json((tmp_path / "plan.json").read_text()) == plan
    plan.save(str(tmp_path / "plan.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_save_gives_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").write_text("")
    small_plan().save(tmp_path / "plan.json")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "plan.json")}
    assert len(modes) == 1


def fail(*_):
    raise OSError(28, "No space left on device")


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("failure", "raised"), [(fail, co.InputError), (interrupt, KeyboardInterrupt)]
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch, failure, raised, step):
    (tmp_path / "plan.json").write_text("old")
    monkeypatch.setattr(os, step, failure)
    with pytest.raises(raised):
        small_plan().save(tmp_path / "plan.json")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "old"


def test_save_to_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(co.InputError, match=r"cannot write .*plan\.json: No such file"):
        small_plan().save(tmp_path / "missing" / "plan.json")


def test_save_below_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(co.InputError, match=r"cannot write .*plan\.json: Not a directory"):
        small_plan().save(tmp_path / "file" / "plan.json")


def test_save_onto_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(co.InputError, match=r"cannot write .*folder"):
        small_plan().save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_save_to_an_unwritable_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(co.InputError, match=r"cannot write .*: Permission denied"):
            small_plan().save(tmp_path / "plan.json")
    finally:
        tmp_path.chmod(0o700)
