"""The expansion: what is counted, refused, planned and in which order."""

from __future__ import annotations

import time
import tracemalloc
from itertools import groupby, islice
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from effillm_server.catalog import Catalog, load, model_key
from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.sweep import Engine, ModelChoice, SweepDefinition
from effillm_server.errors import BadInput
from effillm_server.expand import PlannedCell, check, compute_dtype, count, expand, preview
from tests.support.definitions import definition

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart.yaml"
MANY = list(range(1, 1_001))


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load()


def cells(sweep: SweepDefinition) -> list[PlannedCell]:
    catalog = load()
    return list(expand(sweep, catalog.models, catalog.hardware))


def refused(sweep: SweepDefinition, max_jobs: int = 1_000_000) -> BadInput:
    catalog = load()
    with pytest.raises(BadInput) as caught:
        check(sweep, catalog.hardware, ["short-qa", "chat"], max_jobs)
    return caught.value


def test_the_quickstart_is_twelve_feasible_cells() -> None:
    sweep = SweepDefinition.model_validate(yaml.safe_load(QUICKSTART.read_text()))
    planned = cells(sweep)
    assert count(sweep) == len(planned) == 12
    assert {(p.cell.model, p.cell.quantization, p.cell.batch_size) for p in planned} == {
        (model, quantization, batch)
        for model in ("EleutherAI/pythia-70m", "facebook/opt-125m")
        for quantization in ("fp32", "int8", "int4")
        for batch in (1, 4)
    }
    assert all(p.infeasible is None and p.cell.generate_tokens == 32 and p.cell.weights == "synthetic" for p in planned)


def test_the_count_is_the_product_of_every_axis() -> None:
    sweep = definition(
        models=["facebook/opt-125m", "facebook/opt-350m"], hardware=["cpu", "t4", "a100"], runtime=["default", "old"],
        engine=["transformers", "simulated"], quantization=["fp32", "int8"], batch_size=[1, 2, 4],
        sequence_length=[128, 256], generate_tokens=[16, 32], measurement={"repeats": 3},
    )  # fmt: skip
    assert count(sweep) == 2 * 3 * 2 * 2 * 2 * 3 * 2 * 2 * 3 == len(cells(sweep))


def test_text_workloads_bring_their_own_lengths_and_collapse_the_sequence_axis() -> None:
    sweep = definition(workload=["synthetic", "short-qa", "chat"], sequence_length=[128, 256, 512], batch_size=[1, 2])
    planned = cells(sweep)
    assert count(sweep) == len(planned) == (3 + 2) * 2
    texts = [p.cell for p in planned if p.cell.workload != "synthetic"]
    assert len(texts) == 4
    assert all(cell.sequence_length is None for cell in texts)


def test_repeats_are_cells_of_their_own_in_load_groups_of_their_own() -> None:
    planned = cells(definition(measurement={"repeats": 3}))
    assert [p.cell.repeat for p in planned] == [1, 2, 3]
    assert len({p.cell.load_group("s") for p in planned}) == 3
    assert len({p.digest for p in planned}) == 3


def test_the_order_is_the_same_every_time_and_the_ordinals_count_it() -> None:
    sweep = definition(
        hardware=["t4", "cpu"], batch_size=[8, 1, 2], sequence_length=[512, 128], quantization=["int8", "fp32"]
    )
    first = cells(sweep)
    assert first == cells(sweep)
    assert [p.ordinal for p in first] == list(range(len(first)))


def test_load_groups_are_contiguous_and_sizes_ascend_within_them() -> None:
    planned = cells(
        definition(
            models=["facebook/opt-125m", "EleutherAI/pythia-70m"], hardware=["cpu", "a100"], quantization=["fp32", "int8"],
            batch_size=[16, 1, 4], sequence_length=[512, 128, 64], workload=["synthetic", "chat"], generate_tokens=[32, 8],
            measurement={"repeats": 2},
        )
    )  # fmt: skip
    groups = [(key, list(members)) for key, members in groupby(planned, lambda p: p.cell.load_group("s"))]
    assert len(groups) == len({key for key, _ in groups}) == 2 * 2 * 2 * 2
    for _, members in groups:
        sizes = [p.cell.size for p in members]
        assert sizes == sorted(sizes)


def test_the_digest_is_the_one_the_cell_computes_itself() -> None:
    sweep = definition(
        models=["facebook/opt-125m", {"id": "EleutherAI/pythia-70m", "weights": "synthetic", "revision": "main"}],
        workload=["synthetic", "chat"], quantization=["fp32", "int4"], hardware=["cpu", "a100"],
    )  # fmt: skip
    planned = cells(sweep)
    assert all(p.digest == p.cell.digest(sweep.measurement) for p in planned)
    assert all(type(p.cell).model_validate(p.cell.model_dump()) == p.cell for p in planned)
    assert len({p.digest for p in planned}) == len(planned)


def test_equal_cells_of_different_sweeps_have_equal_digests_and_another_plan_another() -> None:
    assert cells(definition(name="a"))[0].digest == cells(definition(name="b", batch_size=[1, 2]))[0].digest
    assert cells(definition())[0].digest != cells(definition(measurement={"iterations": 20}))[0].digest


def test_a_hub_revision_pins_pretrained_weights_and_leaves_synthetic_ones_alone(catalog: Catalog) -> None:
    sweep = definition(models=["facebook/opt-125m", {"id": "facebook/opt-125m", "weights": "synthetic"}])
    models = {"facebook/opt-125m": catalog.models["facebook/opt-125m"].model_copy(update={"revision": "c0ffee"})}
    assert [p.cell.revision for p in expand(sweep, models, catalog.hardware)] == ["c0ffee", None]


def test_two_revisions_of_one_model_keep_their_own_pins(catalog: Catalog) -> None:
    choices = [ModelChoice(id="facebook/opt-125m", revision=name) for name in ("main", "old")]
    facts = catalog.models["facebook/opt-125m"]
    models = {model_key(c): facts.model_copy(update={"revision": f"commit-of-{c.revision}"}) for c in choices}
    sweep = definition(models=[c.model_dump() for c in choices])
    assert [p.cell.revision for p in expand(sweep, models, catalog.hardware)] == ["commit-of-main", "commit-of-old"]


@pytest.mark.parametrize(
    ("tokens", "length", "says"),
    [
        (1_024, 1_536, "1,536 prompt + 1,024 generated = 2,560 tokens exceed the context window of 2,048 of facebook/opt-125m: "
         "generate_tokens up to 512 fits"),
        (16, 4_096, "no generate_tokens fits, the sequence_length must be at most 2,047"),
        (1, 2_048, "no generate_tokens fits, the sequence_length must be at most 2,047"),
    ],
)  # fmt: skip
def test_beyond_the_context_window_is_infeasible_and_says_what_fits(tokens: int, length: int, says: str) -> None:
    (planned,) = cells(definition(generate_tokens=tokens, sequence_length=length))
    assert planned.infeasible is not None
    assert planned.infeasible[0] is InfeasibleReason.CONTEXT_WINDOW
    assert says in planned.infeasible[1]


def test_exactly_the_context_window_is_feasible() -> None:
    (planned,) = cells(definition(generate_tokens=512, sequence_length=1_536))
    assert planned.infeasible is None


def test_a_text_workload_is_infeasible_only_when_no_prompt_token_is_left() -> None:
    planned = cells(definition(workload="chat", generate_tokens=[2_047, 2_048]))
    assert [p.infeasible is None for p in planned] == [True, False]


def test_a_model_of_unknown_context_window_is_left_to_the_worker(catalog: Catalog) -> None:
    facts = catalog.models["facebook/opt-125m"].model_copy(update={"context_window": None})
    sweep = definition(sequence_length=100_000)
    assert next(expand(sweep, {facts.id: facts}, catalog.hardware)).infeasible is None


def test_a_precision_the_hardware_lacks_is_infeasible_with_the_reason() -> None:
    planned = cells(definition(hardware=["t4", "a100"], quantization=["bf16", "fp16"]))
    reasons = {(p.cell.hardware, p.cell.quantization): p.infeasible for p in planned}
    unsupported = reasons.pop(("t4", "bf16"))
    assert unsupported is not None
    assert unsupported[0] is InfeasibleReason.UNSUPPORTED
    assert "bfloat16" in unsupported[1]
    assert set(reasons.values()) == {None}


def test_a_device_class_outside_the_catalog_is_taken_for_a_gpu(catalog: Catalog) -> None:
    sweep = definition(hardware="tensor-box", quantization="int8")
    assert next(expand(sweep, catalog.models, catalog.hardware)).cell.dtype == "float16"


@pytest.mark.parametrize(
    ("quantization", "gpu", "cpu"),
    [
        ("fp32", "float32", "float32"), ("fp16", "float16", "float16"), ("bf16", "bfloat16", "bfloat16"),
        ("int8", "float16", "float32"), ("int4", "float16", "float32"), ("gptq", "float16", "float32"),
    ],
)  # fmt: skip
def test_the_dtype_follows_from_precision_and_device(quantization: str, gpu: str, cpu: str) -> None:
    assert compute_dtype(quantization, "gpu") == gpu
    assert compute_dtype(quantization, "cpu") == cpu


def test_an_exclusion_removes_the_cells_that_agree_with_all_its_axes() -> None:
    sweep = definition(
        hardware=["cpu", "a100"], quantization=["fp32", "int8", "gptq"], batch_size=[1, 2, 4],
        exclude=[{"quantization": "gptq", "hardware": "cpu"}, {"batch_size": [2, 4], "quantization": ["fp32"]}],
    )  # fmt: skip
    left = {(p.cell.hardware, p.cell.quantization, p.cell.batch_size) for p in cells(sweep)}
    everything = {(h, q, b) for h in ("cpu", "a100") for q in ("fp32", "int8", "gptq") for b in (1, 2, 4)}
    assert everything - left == {("cpu", "gptq", b) for b in (1, 2, 4)} | {
        (h, "fp32", b) for h in ("cpu", "a100") for b in (2, 4)
    }


def test_an_exclusion_names_a_quantization_by_its_label_or_with_all_its_options_by_its_method() -> None:
    axis = ["fp32", "gptq", {"method": "gptq", "bits": 3}, "int4", "int4-fp4", "uniform-b4"]

    def left(*named: str) -> set[str]:
        return {
            p.cell.quantization for p in cells(definition(quantization=axis, exclude=[{"quantization": list(named)}]))
        }

    assert left("gptq") == {"fp32", "int4", "int4-fp4", "uniform-b4"}
    assert left("gptq-b3", "uniform") == {"fp32", "gptq", "int4", "int4-fp4"}
    assert left("int4-fp4", "fp32") == {"gptq", "gptq-b3-g128", "int4", "uniform-b4"}


def test_an_exclusion_of_a_method_that_is_not_on_the_axis_is_a_typo() -> None:
    sweep = definition(quantization=["fp32", "int8"], exclude=[{"quantization": "uniform"}])
    with pytest.raises(BadInput, match="'uniform' is not a quantization of this sweep"):
        check(sweep, {"cpu"}, set(), 1000)


def test_exclusions_reach_model_weights_engine_runtime_workload_and_lengths() -> None:
    sweep = definition(
        models=["facebook/opt-125m", {"id": "facebook/opt-350m", "weights": "synthetic"}], engine=["transformers", "simulated"],
        runtime=["default", "old"], workload=["synthetic", "chat"], sequence_length=[128, 256], generate_tokens=[8, 16],
        exclude=[
            {"model": "facebook/opt-125m", "engine": "simulated"}, {"weights": "synthetic", "runtime": "old"},
            {"workload": "chat", "generate_tokens": 16}, {"sequence_length": 256},
        ],
    )  # fmt: skip
    left = [p.cell for p in cells(sweep)]
    assert left
    assert not any(c.model == "facebook/opt-125m" and c.engine is Engine.SIMULATED for c in left)
    assert not any(c.weights == "synthetic" and c.runtime == "old" for c in left)
    assert not any(c.workload == "chat" and c.generate_tokens == 16 for c in left)
    assert {c.sequence_length for c in left} == {128, None}


AXIS = st.lists(st.integers(1, 3_000), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    batches=AXIS, lengths=AXIS, tokens=AXIS,
    hardware=st.lists(st.sampled_from(["cpu", "t4", "a100"]), min_size=1, unique=True),
    quantization=st.lists(st.sampled_from(["fp32", "bf16", "int8"]), min_size=1, unique=True),
    workload=st.lists(st.sampled_from(["synthetic", "chat"]), min_size=1, unique=True),
    drop=st.data(),
)  # fmt: skip
def test_the_matrix_always_adds_up(
    batches: list[int], lengths: list[int], tokens: list[int], hardware: list[str], quantization: list[str],
    workload: list[str], drop: st.DataObject,
) -> None:  # fmt: skip
    exclusion = {"batch_size": drop.draw(st.sampled_from(batches)), "hardware": drop.draw(st.sampled_from(hardware))}
    sweep = definition(
        hardware=hardware, quantization=quantization, batch_size=batches, sequence_length=lengths, generate_tokens=tokens,
        workload=workload, exclude=[exclusion],
    )  # fmt: skip
    planned = cells(sweep)
    prompts = len(lengths) * ("synthetic" in workload) + ("chat" in workload)
    excluded = len(quantization) * len(tokens) * prompts
    assert len(planned) == count(sweep) - excluded
    catalog = load()
    seen = preview(sweep, catalog.models, catalog.hardware)
    assert seen.total == len(planned) == seen.pending + sum(seen.infeasible.values())
    assert seen.excluded == excluded
    for reason in InfeasibleReason:
        stated = sum(p.infeasible is not None and p.infeasible[0] is reason for p in planned)
        assert seen.infeasible.get(reason, 0) == stated
    assert list(seen.examples) == [p for p in planned if p.infeasible is not None][: len(seen.examples)]


def test_a_billion_cells_are_refused_at_once_in_flat_memory() -> None:
    sweep = definition(batch_size=MANY, sequence_length=MANY, generate_tokens=MANY)
    assert count(sweep) == 10**9
    tracemalloc.start()
    try:
        began = time.thread_time()
        error = refused(sweep)
        elapsed = time.thread_time() - began
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error) == (
        "sweep expands to 1,000,000,000 jobs, the limit is 1,000,000: drop an axis or raise EFFILLM_MAX_JOBS"
    )
    assert elapsed < 0.05
    assert peak < 1_000_000


def test_sizes_beyond_any_machine_integer_are_counted_exactly() -> None:
    many = tuple(range(1, 10_001))
    sweep = definition().model_copy(
        update={
            "batch_size": many, "sequence_length": many, "generate_tokens": many, "quantization": many,
            "hardware": many, "runtime": many, "models": many, "engine": (1, 2),
        }
    )  # fmt: skip
    assert count(sweep) == 2 * 10**28


def test_expansion_is_lazy_and_holds_no_more_than_an_axis() -> None:
    sweep = definition(batch_size=MANY, sequence_length=MANY, generate_tokens=MANY)
    catalog = load()
    tracemalloc.start()
    try:
        taken = sum(1 for _ in islice(expand(sweep, catalog.models, catalog.hardware), 5_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken == 5_000
    assert peak < 4_000_000


def test_the_limit_itself_is_accepted_and_one_more_is_not(catalog: Catalog) -> None:
    sweep = definition(batch_size=[1, 2, 3])
    check(sweep, catalog.hardware, [], 3)
    assert "expands to 3 jobs, the limit is 2" in str(refused(sweep, max_jobs=2))


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"hardware": ["rtx-4900"]}, "hardware", "Did you mean 'rtx-4090'?"),
        ({"hardware": ["a6000"]}, "hardware", "Did you mean 'rtx-a6000'?"),
        ({"hardware": ["qqq"]}, "hardware", "hardware: 'qqq' is not a hardware class. Choose from a10, a100, "),
        ({"workload": ["shortqa"]}, "workload", "Did you mean 'short-qa'?"),
        ({"workload": ["synthetics"]}, "workload", "Did you mean 'synthetic'?"),
        ({"exclude": [{"hardware": "cpus"}]}, "exclude", "exclude[0].hardware: 'cpus' is not a hardware of this sweep. Did you mean"),
        ({"exclude": [{"model": "facebook/opt-125"}]}, "exclude", "Did you mean 'facebook/opt-125m'?"),
        ({"exclude": [{"batch_size": 46}]}, "exclude", "exclude[0].batch_size: '46' is not a batch_size of this sweep."),
        ({"exclude": [{"weights": "synthetic"}]}, "exclude", "Choose from pretrained"),
        ({"exclude": [{"hardware": "cpu"}]}, "exclude", "the exclusions remove every cell"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing_are_refused_with_the_nearest(
    changes: dict[str, object], field: str, says: str
) -> None:
    error = refused(definition(**changes))
    assert error.field == field
    assert says in str(error)


def test_a_class_that_only_a_joined_device_has_is_known(catalog: Catalog) -> None:
    check(definition(hardware="tensor-box"), {*catalog.hardware, "tensor-box"}, [], 10)
