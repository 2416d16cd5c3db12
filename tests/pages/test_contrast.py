"""Texts and curves can be read in dark and in light (WCAG 2.1, 1.4.3 and 1.4.11)."""

import re
from importlib import resources

import pytest

TEXT, GRAPHIC = 4.5, 3.0


def palettes() -> dict[str, dict[str, str]]:
    css = (resources.files("consilium.pages") / "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root\{(.*?)\}", css)[:2]
    viewer = (resources.files("consilium.review") / "static" / "review.css").read_text(encoding="utf-8")
    found = re.search(r"\.viewer\{(.*?)\}", viewer)
    assert found is not None
    named = {"light": light, "dark": dark, "viewer": f"{dark};--paper:#12161d;{found.group(1)}"}
    return {key: dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", text)) for key, text in named.items()}


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_black_on_white_has_a_contrast_of_21() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize("scheme", ["light", "dark", "viewer"])
def test_every_text_and_curve_stands_out(scheme: str) -> None:
    colours = palettes()[scheme]
    for ink in ("ink", "soft", "accent", "warn"):
        for ground in ("paper", "panel"):
            assert contrast(colours[ink], colours[ground]) >= TEXT, (ink, ground)
    assert contrast(colours["flag-ink"], colours["flag"]) >= TEXT
    for k in range(9):
        assert contrast(colours[f"c{k}"], colours["paper"]) >= GRAPHIC, k
