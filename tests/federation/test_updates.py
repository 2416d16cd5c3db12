"""Which updates are taken: every reason for which one is refused, by name."""

import numpy as np
import pytest

from consilium.errors import DataError, UpdateRefused
from consilium.federation.messages import max_update_bytes, read_update, wire_schema
from consilium.federation.settings import SiteEnrolment
from consilium.federation.updates import AcceptedUpdate, OpenRound, check_update
from tests.federation.toys import (
    HEADS,
    build_header,
    build_model,
    build_round,
    build_settings_for,
    build_update_bytes,
    same_bits,
    shift,
)

MODEL = build_model()
SETTINGS = build_settings_for(3)
ROUND = build_round(MODEL, SETTINGS, round_number=5)


def check(content: bytes, site: str = "site-0", opened: OpenRound = ROUND) -> AcceptedUpdate:
    wire = wire_schema(opened.schema, control=False, half_precision=False)
    return check_update(read_update(content, max_bytes=max_update_bytes(wire)), site, opened, SETTINGS)


def test_an_honest_update_is_taken_as_it_is() -> None:
    accepted = check(build_update_bytes(ROUND, shift(MODEL, 0.1)))
    assert (accepted.weight, accepted.scale, accepted.capped) == (10, 1.0, False)
    assert same_bits(dict(accepted.arrays()), shift(MODEL, 0.1))


def with_value(value: float) -> dict[str, np.ndarray]:
    changed = shift(MODEL, 0.0)
    changed["encoder.0.weight"].reshape(-1)[7] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"site": "site-1"}, "another site's name"),
        ({"round_number": 3}, "round 3 is closed; round 5 is open"),
        ({"round_number": 6}, "round 6 is not open yet"),
        ({"job_digest": "0" * 64}, "other settings"),
        ({"base_digest": "0" * 64}, "another model"),
        ({"weight": 11}, "at most the 10 cases"),
        ({"cases_by_structure": {"Larynx": 1}}, "must count at most 0 cases"),
        ({"metrics": {"patient Smith": 1.0}}, "names are"),
        ({"metrics": {"dice/Smith": 1.0}}, "names are"),
        ({"content": "change"}, "must carry parameters"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_by_name(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UpdateRefused, match=reason) as refusal:
        check(build_update_bytes(ROUND, MODEL, **changes))
    assert (refusal.value.site, refusal.value.round_number) == ("site-0", 5)
    assert "Smith" not in str(refusal.value)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (with_value(np.nan), "NaN or infinite"),
        (with_value(np.inf), "NaN or infinite"),
        (MODEL | {"scale": np.zeros(1, np.float32)}, r"scale must be float32 \(\); found float32 \(1,\)"),
        (MODEL | {"encoder.0.bias": np.zeros(1, np.float32)}, r"found float32 \(1,\)"),
        (MODEL | {"scale": np.zeros((), np.float64)}, "found float64"),
        (MODEL | {"scale": np.zeros((), np.float16)}, "found float16"),
        (MODEL | {"extra": np.zeros(1, np.float32)}, "extra is not part of the model"),
        ({n: a for n, a in MODEL.items() if n != "scale"}, "scale is missing"),
    ],
)
def test_arrays_that_are_not_the_models_are_refused(parameters: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(UpdateRefused, match=reason):
        check(build_update_bytes(ROUND, parameters))


def test_a_site_that_is_not_enrolled_is_refused() -> None:
    with pytest.raises(UpdateRefused, match="not enrolled"):
        check(build_update_bytes(ROUND, MODEL, site="site-9"), "site-9")


@pytest.mark.parametrize("weight", [-9, 0, 10**12, True, 1.5, "10"])
def test_a_weight_that_is_no_number_of_cases_cannot_be_a_header(weight: object) -> None:
    with pytest.raises(DataError, match="weight"):
        build_header(ROUND, weight=weight)


def test_the_largest_float_is_refused_or_scaled_but_never_overflows() -> None:
    accepted = check(build_update_bytes(ROUND, with_value(float(np.finfo(np.float32).max))))
    assert accepted.scale < 1e-30
    assert all(np.isfinite(array).all() for _, array in accepted.arrays())
    double = {"w": np.zeros(2)}
    opened = build_round(double, SETTINGS)
    with pytest.raises(UpdateRefused, match="NaN or infinite"):
        check(build_update_bytes(opened, {"w": np.array([1e300, 1.0])}), opened=opened)


def test_a_change_longer_than_the_clipping_norm_is_scaled_down_to_it() -> None:
    settings = build_settings_for(3, clipping_norm=2.0)
    opened = build_round({"w": np.zeros(2)}, settings)
    content = build_update_bytes(opened, {"w": np.array([30.0, 40.0])})
    accepted = check_update(read_update(content, max_bytes=10**7), "site-0", opened, settings)
    assert accepted.norm == 50.0
    np.testing.assert_allclose(dict(accepted.arrays())["w"], [1.2, 1.6], rtol=1e-12)


def test_one_site_counts_for_at_most_its_share() -> None:
    settings = build_settings_for(3, max_share=0.2)
    opened = build_round(MODEL, settings)
    content = build_update_bytes(opened, MODEL)
    accepted = check_update(read_update(content, max_bytes=10**7), "site-0", opened, settings)
    assert (accepted.weight, accepted.capped) == (6, True)


def test_a_late_site_counts_with_its_heads_alone_until_its_round() -> None:
    model = build_model(heads=True)
    late = SiteEnrolment(name="site-0", cases=10, structures={"Larynx": 4}, heads_only_until=6)
    for number, weight in ((5, 0), (6, 10)):
        settings = build_settings_for(1, sites=(late,), heads=HEADS)
        opened = build_round(model, settings, round_number=number)
        content = build_update_bytes(opened, model, cases_by_structure={"Larynx": 3})
        accepted = check_update(read_update(content, max_bytes=10**7), "site-0", opened, settings)
        assert (accepted.weight, accepted.structure_weights) == (weight, {"Larynx": 3})


def test_an_update_of_ten_gigabytes_is_refused_by_its_size_alone() -> None:
    content = (10 * 2**30).to_bytes(8, "little") + b"{}"
    with pytest.raises(DataError, match="header may have"):
        read_update(content, max_bytes=10**6)
