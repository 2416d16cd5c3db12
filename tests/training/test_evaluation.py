"""What the figures of all cases say together."""

import numpy as np

from consilium.metrics.comparison import compare_masks
from consilium.training.evaluation import Compared, summarise


def test_only_dice_counts_cases_with_an_empty_side() -> None:
    ball, nothing = np.zeros((4, 8, 8), np.bool_), np.zeros((4, 8, 8), np.bool_)
    ball[1:3, 2:6, 2:6] = True
    near = np.roll(ball, 1, axis=2)
    pairs = [(ball, near), (ball, near), (ball, nothing), (nothing, ball), (nothing, nothing)]
    rows = [
        Compared(
            case_id=f"case-{number}",
            patient_id=f"patient-{number}",
            structure="Bladder",
            figures=compare_masks(reference, prediction, (3.0, 1.0, 1.0)),
            promised_dice=1.0,
            doubt=0.0,
        )
        for number, (reference, prediction) in enumerate(pairs)
    ]
    (summary,) = summarise(rows, ["Bladder"])
    counts = {field: interval.count for field, interval in summary.intervals.items()}
    assert counts.pop("dice") == counts.pop("surface_dice") == 4
    assert set(counts.values()) == {2}
    one = rows[0].figures
    assert summary.intervals["added_path_length_mm"].estimate == one.added_path_length_mm
    assert summary.intervals["reference_volume_cm3"].estimate == one.reference_volume_cm3
    assert (summary.empty_reference, summary.empty_prediction, summary.empty_both) == (1, 1, 1)
