"""The tables of a part of Figure 9 -> summary.json: question, answer, the paper's claims and what becomes of them, charts."""

from __future__ import annotations

from typing import Any

from cnnf_brain.visualize import plane
from cnnf_brain.visualize.view import SHOWN
from cnnf_brain.visualize.write import chart, claim, percent

INTERVAL = "Whiskers: 95% bootstrap over images."
LEAST = 200  # images, that the intervals were planned for


def about_9a(seed: int, table: list[dict[str, Any]]) -> dict[str, Any]:
    """The planes."""
    last = last_iteration(table)
    at = {row["measure"]: row for row in table if row["iteration"] == last}
    enters, leaves, net = (at[name] for name in ("enters", "leaves", "enters_minus_leaves"))
    closer, control, gain = (at[name] for name in ("closer", "closer_to_another", "closer_minus_control"))
    shares = [percent(one, "mean", "low", "high") for one in (enters, leaves, net, closer, control, gain)]
    n = net["images"]
    verdict = "more" if net["low"] > 0 else "fewer" if net["high"] < 0 else "not decidedly more or fewer"
    return {
        "figure": "9a",
        "title": "Figure 9a: decision cells and feedback",
        "question": "Does feedback move the images of a plane across decision boundaries, towards the image at its centre?",
        "answer": f"After {last} iterations {verdict} points have changed to the centre's class ({shares[0]}) than have left it "
        f"({shares[1]}), over {n} planes; {shares[3]} of the points come closer to the centre, and {shares[4]} to an image that "
        "has nothing to do with it.",
        "claims": [
            claim(
                "Feedback moves samples across decision boundaries to the class of the validation image",
                f"{shares[0]} of the grid points change to it, {shares[1]} leave it; difference {shares[2]}",
                net["low"],
                net["high"],
            ),
            claim(
                "Feedback moves samples toward the validation image (more than toward another image, drawn at random)",
                f"{shares[3]} come closer to it, {shares[4]} to the other; difference {shares[5]}",
                gain["low"],
                gain["high"],
            ),
        ],
        "charts": [
            chart(
                "Grid points that change class, and that come closer",
                f"Shares of a {plane.COARSE} x {plane.COARSE} grid, mean over {n} planes through validation images. {INTERVAL}",
                "mean",
                "share of grid points",
                ["{meaning}"],
                "iteration {iteration}",
            )
        ],
        "tables": [
            {
                "file": "table.csv",
                "title": "Shares",
                "notes": [
                    "The centre's class is the network's decision for the centre in the first pass.",
                    f"The plane lies along the two largest principal components of the {plane.NEIGHBOURS} images "
                    f"nearest to the centre and "
                    "reaches as far as their median distance; points outside of [0, 1] are not clipped, which would "
                    "leave the plane.",
                ],
            }
        ],
        "pictures": [
            {
                "file": "figure.svg",
                "caption": f"Three of the planes, drawn at random with seed {seed} among those "
                "measured. Left: decision cells in the first pass, one colour for each class, and the projection of what "
                "each feedback iteration has done to the input; the cross is the validation image. Right: the length of "
                "what leaves the plane after the last iteration. No error bars: every value is one point of one plane.",
            }
        ],
        "caveats": _few(n) + _one_network(),
    }


def about_9b(
    seed: int, table: list[dict[str, Any]], focus: list[dict[str, Any]], layer: str, middle: float
) -> dict[str, Any]:
    """Adversarial examples."""
    last = last_iteration(table)
    words, claims = [], []
    for row in (row for row in table if row["iteration"] == last):
        measured = (
            f"{row['threat']}, epsilon {row['epsilon']:g}: {row['corrected']} corrected, {row['spoiled']} spoiled of "
            f"{row['images']}; accuracy {percent(row, 'change', 'change_low', 'change_high')}"
        )
        claims.append(
            claim(f"Feedback corrects PGD-40 examples ({row['threat']})", measured, row["change_low"], row["change_high"])
        )
        if row["epsilon"] == middle:
            words.append(
                f"{row['corrected']} of {row['images']} are corrected and {row['spoiled']} spoiled ({row['threat']})"
            )
    for row in (row for row in focus if row["iteration"] == last and row["group"] == "corrected"):
        change = percent(row, "change", "change_low", "change_high")
        measured = f"{row['threat']}: area of attention {change} over {row['images']} images"
        claims.append(
            claim(
                "In corrected images attention narrows to specific features",
                measured,
                -row["change_high"],
                -row["change_low"],
            )
        )
    n = table[0]["images"]
    rule = f"drawn at random with seed {seed} among all that qualify"
    focus_chart = chart(
        "Area that Grad-CAM covers",
        f"Share of the map of layer {layer}, mean over images. {INTERVAL} Smaller is narrower.",
        "area",
        "area of attention",
        ["{threat}, {group} ({images} images)"],
        "iteration {iteration}",
    ) | {"table": "focus.csv"}
    return {
        "figure": "9b",
        "title": "Figure 9b: adversarial examples and attention",
        "question": "Does feedback correct wrong predictions on PGD-40 examples, and does the network then look at specific "
        "features?",
        "answer": f"At epsilon {middle:g}, " + "; ".join(words) + f", by {last} iterations of feedback.",
        "claims": claims,
        "charts": [
            chart(
                "Accuracy on PGD-40 examples",
                f"Share of {n} validation images. {INTERVAL} first_pass: the attacker sees "
                "iteration 0 alone (the paper's transfer attack); end_to_end: the unrolled network.",
                "accuracy",
                "accuracy",
                ["{threat}, epsilon {epsilon}"],
                "iteration {iteration}",
            ),
            focus_chart,
        ],
        "tables": [
            {
                "file": "table.csv",
                "title": "Accuracy by iteration",
                "notes": [
                    "epsilon: in units of [0, 1]. change: of the accuracy since iteration 0. corrected: wrong at "
                    "iteration 0 and right "
                    "at this one; spoiled: the reverse."
                ],
            },
            {
                "file": "focus.csv",
                "title": "Attention",
                "notes": [
                    f"Grad-CAM of the decision that each iteration takes, at layer {layer}, at epsilon {middle:g}. "
                    f"area: (sum a)^2 / "
                    "(number of places x sum a^2). empty: maps without a positive value, which are left out."
                ],
            },
        ],
        "pictures": [
            {
                "file": "figure.svg",
                "caption": f"Grad-CAM on PGD-40 examples (epsilon {middle:g}), up to {SHOWN} images that "
                f"feedback corrects and {SHOWN} that it spoils for each attack, {rule}. Each map is scaled to its own maximum. "
                "Above each map: decision, and ✓ where it is the label. No error bars: single images.",
            }
        ],
        "caveats": [
            *_few(n),
            *_one_network(),
            "PGD-40 without restarts, of two threats: an upper bound of the accuracy under attack. "
            "Stronger and adaptive attacks are the business of python -m cnnf_brain.robustness.",
        ],
    }


def about_9c(seed: int, table: list[dict[str, Any]], layer: str) -> dict[str, Any]:
    """Attention on clean, blurred and noisy images."""
    last = last_iteration(table)
    at_end = [row for row in table if row["iteration"] == last]
    n = at_end[0]["images"]
    words = "; ".join(f"{r['condition']} {percent(r, 'change', 'change_low', 'change_high')}" for r in at_end)
    return {
        "figure": "9c",
        "title": "Figure 9c: attention over iterations",
        "question": "With feedback, does the network come to look at specific features, on clean, blurred and noisy images?",
        "answer": f"The area that Grad-CAM covers changes, in {last} iterations, by: {words} of the map, over {n} images.",
        "claims": [
            claim(
                f"With feedback attention narrows to specific features ({row['condition']})",
                f"area of attention {percent(row, 'change', 'change_low', 'change_high')}",
                -row["change_high"],
                -row["change_low"],
            )
            for row in at_end
        ],
        "charts": [
            chart(
                "Area that Grad-CAM covers",
                f"Share of the map of layer {layer}, mean over {n} validation images. {INTERVAL} Smaller is narrower.",
                "area",
                "area of attention",
                ["{condition}"],
                "iteration {iteration}",
            )
        ],
        "tables": [
            {
                "file": "table.csv",
                "title": "Attention and accuracy",
                "notes": [
                    f"Grad-CAM of the decision that each iteration takes, at layer {layer}. area: (sum a)^2 / (number "
                    f"of places x sum a^2). "
                    "change: since iteration 0. empty: maps without a positive value, which are left out.",
                    "blur: standard deviation in pixels; noise: standard deviation, in units of [0, 1], then clipped.",
                ],
            }
        ],
        "pictures": [
            {
                "file": "figure.svg",
                "caption": f"Grad-CAM of {SHOWN} images, drawn at random with seed {seed} among those "
                "measured, clean, blurred and noisy. Each map is scaled to its own maximum. Above each map: decision, and ✓ "
                "where it is the label. No error bars: single images.",
            }
        ],
        "caveats": [
            *_few(n),
            *_one_network(),
            "Grad-CAM tells where the logit is sensitive, at the resolution of the layer; it does "
            "not tell what the network would do without these features.",
        ],
    }


def about_9d(seed: int, table: list[dict[str, Any]]) -> dict[str, Any]:
    """Restored images."""
    last = last_iteration(table)
    at_end = [r for r in table if r["iteration"] == last and r["what"] == "input" and r["corruption"] != "clean"]
    made = {(r["corruption"], r["strength"]): r for r in table if r["iteration"] == last and r["what"] == "reconstruction"}
    claims = []
    for row in at_end:
        other = made[row["corruption"], row["strength"]]
        measured = (
            f"mean squared error {row['mse_before']:.4f} to {row['mse_after']:.4f}, "
            f"{percent(row, 'mse_closer', 'mse_closer_low', 'mse_closer_high')} of the images closer; SSIM "
            f"{row['ssim_before']:.3f} to {row['ssim_after']:.3f}, {100 * row['ssim_closer']:.1f} % closer; the reconstruction "
            f"itself: {other['mse_after']:.4f}, {100 * other['mse_closer']:.1f} % closer"
        )
        words = f"Feedback restores images: {row['corruption']} {row['strength']:g} (by mean squared error)"
        claims.append(claim(words, measured, -row["mse_change_high"], -row["mse_change_low"]))
    nearer = [c["holds"] for c in claims].count(True)
    n = at_end[0]["images"]
    group, label = ["{corruption} {strength}"], "{what}, iteration {iteration}"
    about = (
        f"Share of {n} validation images that come closer to the clean image. {INTERVAL} input: the image that the iteration "
        "sees; reconstruction: what feedback generates for it, before the step."
    )
    first = [r for r in table if r["iteration"] == 1 and r["what"] == "input" and r["corruption"] != "clean"]
    early = sum(r["mse_change_high"] < 0 for r in first)
    return {
        "figure": "9d",
        "title": "Figure 9d: restored images",
        "question": "Does feedback bring corrupted images closer to the clean ones?",
        "answer": f"By mean squared error the input is closer to the clean image after {last} iterations in {nearer} of "
        f"{len(claims)} "
        f"conditions (after the first iteration in {early}), over {n} images each.",
        "claims": claims,
        "charts": [
            chart("Closer by mean squared error", about, "mse_closer", "share of images", group, label),
            chart("Closer by SSIM", about, "ssim_closer", "share of images", group, label),
        ],
        "tables": [
            {
                "file": "table.csv",
                "title": "Distances to the clean image",
                "notes": [
                    "blur: standard deviation in pixels; noise: standard deviation, in units of [0, 1], then clipped; "
                    "salt and pepper: share of "
                    "pixels; PGD: epsilon in units of [0, 1], 40 steps against the first pass.",
                    "mse, ssim: means over images; change: after minus before. SSIM: Gaussian window of 1.5 pixels, "
                    "range 1. Inputs and "
                    "reconstructions are compared as they are, not clipped to [0, 1].",
                ],
            }
        ],
        "pictures": [
            {
                "file": "figure.svg",
                "caption": f"{SHOWN} images, drawn at random with seed {seed} among those measured, at the "
                "middle strength of each corruption: clean, corrupted, the input of the last iteration, and what feedback "
                "generated for it. No error bars: single images.",
            }
        ],
        "caveats": [*_few(n), *_one_network()],
    }


def last_iteration(table: list[dict[str, Any]]) -> int:
    """The last iteration of a table."""
    return max(row["iteration"] for row in table)


def _few(n: int) -> list[str]:
    return [f"Too few images: {n}, of at least {LEAST} that the intervals were planned for."] if n < LEAST else []


def _one_network() -> list[str]:
    return ["One network, trained once: how much another training run would differ is not measured here."]
