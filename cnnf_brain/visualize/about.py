"""The tables of a part of Figure 9 -> summary.json: question, answer, the paper's claims beside what was measured, charts."""

from __future__ import annotations

from typing import Any

from cnnf_brain.visualize import plane
from cnnf_brain.visualize.view import SHOWN
from cnnf_brain.visualize.write import chart, claim, percent

Rows = list[dict[str, Any]]

TITLES = {
    "9a": "Figure 9a: decision cells and feedback",
    "9b": "Figure 9b: adversarial examples and attention",
    "9c": "Figure 9c: attention over iterations",
    "9d": "Figure 9d: restored images",
}
QUESTIONS = {
    "9a": "Does feedback move the images of a plane across decision boundaries, towards the image at its centre?",
    "9b": "Does feedback correct wrong predictions on PGD-40 examples, and does the network then look at specific features?",
    "9c": "With feedback, does the network come to look at specific features, on clean, blurred and noisy images?",
    "9d": "Does feedback bring corrupted images closer to the clean ones?",
}
INTERVAL = "Whiskers: 95% bootstrap over images."
AREA = "area: (sum a)^2 / (number of places x sum a^2). empty: maps without a positive value, which are left out."
BLUR_AND_NOISE = "blur: standard deviation in pixels; noise: standard deviation, in units of [0, 1], then clipped"
MAPS = "Each map is scaled to its own maximum. Above each map: decision, and ✓ where it is the label. No error bars: single images."
LEAST = 200  # images that the intervals were planned for


def about_9a(seed: int, table: Rows) -> dict[str, Any]:
    """The planes."""
    last = last_iteration(table)
    at = {row["measure"]: row for row in table if row["iteration"] == last}
    share = {name: percent(row, "mean", "low", "high") for name, row in at.items()}
    net, gain = at["enters_minus_leaves"], at["closer_minus_control"]
    n = net["images"]
    verdict = "more" if net["low"] > 0 else "fewer" if net["high"] < 0 else "not decidedly more or fewer"
    answer = (
        f"After {last} iterations {verdict} points have changed to the centre's class ({share['enters']}) than have left it "
        f"({share['leaves']}), over {n} planes; {share['closer']} of the points come closer to the centre, and "
        f"{share['closer_to_another']} to another image, drawn at random."
    )
    claims = [
        claim(
            "Feedback moves samples across decision boundaries to the class of the validation image",
            f"{share['enters']} of the grid points change to it, {share['leaves']} leave it; difference "
            f"{share['enters_minus_leaves']}",
            net["low"],
            net["high"],
        ),
        claim(
            "Feedback moves samples toward the validation image (more than toward another image, drawn at random)",
            f"{share['closer']} come closer to it, {share['closer_to_another']} to the other; difference "
            f"{share['closer_minus_control']}",
            gain["low"],
            gain["high"],
        ),
    ]
    caption = f"Shares of a {plane.COARSE} x {plane.COARSE} grid, mean over {n} planes through validation images. {INTERVAL}"
    bars = chart(
        "Grid points that change class, and that come closer",
        caption,
        "mean",
        "share of grid points",
        ["{meaning}"],
        "iteration {iteration}",
    )
    shares = (
        "Shares",
        "The centre's class is the network's decision for the centre in the first pass.",
        f"The plane is spanned by the two largest principal components of the {plane.NEIGHBOURS} images nearest to the centre. "
        "It reaches as far as their median distance. Points outside of [0, 1] are not clipped, which would leave the plane.",
    )
    picture = (
        f"Three of the planes, drawn at random with seed {seed} among those measured. Left: decision cells in the first pass, one "
        "colour for each class, and the projection of how each feedback iteration has changed the input; the cross is the "
        "validation image. Right: the length of the part of the change that leaves the plane, after the last iteration. No error "
        "bars: every value is one point of one plane."
    )
    return _summary("9a", answer, claims, [bars], {"table.csv": shares}, picture, _caveats(n))


def about_9b(seed: int, table: Rows, focus: Rows, layer: str, middle: float) -> dict[str, Any]:
    """Adversarial examples."""
    last, n = last_iteration(table), table[0]["images"]
    at_end = [row for row in table if row["iteration"] == last]
    corrected = [row for row in focus if row["iteration"] == last and row["group"] == "corrected"]
    words = [
        f"{row['corrected']} of {row['images']} are corrected and {row['spoiled']} spoiled ({row['threat']})"
        for row in at_end
        if row["epsilon"] == middle
    ]
    claims = [
        claim(
            f"Feedback corrects PGD-40 examples ({row['threat']})",
            f"{row['threat']}, epsilon {row['epsilon']:g}: {row['corrected']} corrected, {row['spoiled']} spoiled of "
            f"{row['images']}; accuracy {_change(row)}",
            row["change_low"],
            row["change_high"],
        )
        for row in at_end
    ]
    claims += [
        _narrows(
            "In corrected images attention narrows to specific features",
            f"{row['threat']}: area of attention {_change(row)} over {row['images']} images",
            row,
        )
        for row in corrected
    ]
    charts = [
        chart(
            "Accuracy on PGD-40 examples",
            f"Share of {n} validation images. {INTERVAL} first_pass: the attacker sees iteration 0 alone (the paper's transfer "
            "attack); end_to_end: the unrolled network.",
            "accuracy",
            "accuracy",
            ["{threat}, epsilon {epsilon}"],
            "iteration {iteration}",
        ),
        _area_chart(f"mean over images. {INTERVAL}", layer, "{threat}, {group} ({images} images)") | {"table": "focus.csv"},
    ]
    accuracy = (
        "Accuracy by iteration",
        "epsilon: in units of [0, 1]. change: of the accuracy since iteration 0. corrected: wrong at iteration 0 and right at "
        "this one; spoiled: the reverse.",
    )
    attention = (
        "Attention",
        f"Grad-CAM of the decision that each iteration takes, at layer {layer}, at epsilon {middle:g}. {AREA}",
    )
    picture = (
        f"Grad-CAM on PGD-40 examples (epsilon {middle:g}), up to {SHOWN} images that feedback corrects and {SHOWN} that it spoils "
        f"for each attack, drawn at random with seed {seed} among all that qualify. {MAPS}"
    )
    caveats = _caveats(
        n,
        "PGD-40 without restarts, of two threats: an upper bound of the accuracy under attack. python -m cnnf_brain.robustness has "
        "stronger and adaptive attacks.",
    )
    answer = f"At epsilon {middle:g}, " + "; ".join(words) + f", by {last} iterations of feedback."
    return _summary("9b", answer, claims, charts, {"table.csv": accuracy, "focus.csv": attention}, picture, caveats)


def about_9c(seed: int, table: Rows, layer: str) -> dict[str, Any]:
    """Attention on clean, blurred and noisy images."""
    last = last_iteration(table)
    at_end = [row for row in table if row["iteration"] == last]
    n = at_end[0]["images"]
    words = "; ".join(f"{row['condition']} {_change(row)}" for row in at_end)
    answer = f"The area that Grad-CAM covers changes, in {last} iterations, by: {words} of the map, over {n} images."
    claims = [
        _narrows(
            f"With feedback attention narrows to specific features ({row['condition']})",
            f"area of attention {_change(row)}",
            row,
        )
        for row in at_end
    ]
    bars = _area_chart(f"mean over {n} validation images. {INTERVAL}", layer, "{condition}")
    attention = (
        "Attention and accuracy",
        f"Grad-CAM of each iteration's own decision, at layer {layer}. change: since iteration 0. {AREA}",
        f"{BLUR_AND_NOISE}.",
    )
    picture = f"Grad-CAM of {SHOWN} images, drawn at random with seed {seed} among those measured, clean, blurred and noisy. {MAPS}"
    caveats = _caveats(
        n,
        "Grad-CAM tells where the logit is sensitive, at the resolution of the layer; it does not tell what the network would do "
        "without these features.",
    )
    return _summary("9c", answer, claims, [bars], {"table.csv": attention}, picture, caveats)


def about_9d(seed: int, table: Rows) -> dict[str, Any]:
    """Restored images."""
    last = last_iteration(table)
    corrupted = [row for row in table if row["what"] == "input" and row["corruption"] != "clean"]
    at_end = [row for row in corrupted if row["iteration"] == last]
    early = sum(row["mse_change_high"] < 0 for row in corrupted if row["iteration"] == 1)
    made = {(r["corruption"], r["strength"]): r for r in table if r["iteration"] == last and r["what"] == "reconstruction"}
    claims = [_restores(row, made[row["corruption"], row["strength"]]) for row in at_end]
    nearer = [entry["holds"] for entry in claims].count(True)
    n = at_end[0]["images"]
    answer = (
        f"By mean squared error the input is closer to the clean image after {last} iterations in {nearer} of {len(claims)} "
        f"conditions (after the first iteration in {early}), over {n} images each."
    )
    caption = (
        f"Share of {n} validation images that come closer to the clean image. {INTERVAL} input: the image that the iteration "
        "sees; reconstruction: what feedback generates for it, before the step."
    )
    group, label = ["{corruption} {strength}"], "{what}, iteration {iteration}"
    charts = [
        chart("Closer by mean squared error", caption, "mse_closer", "share of images", group, label),
        chart("Closer by SSIM", caption, "ssim_closer", "share of images", group, label),
    ]
    distances = (
        "Distances to the clean image",
        f"{BLUR_AND_NOISE}; salt and pepper: share of pixels; PGD: epsilon in units of [0, 1], 40 steps against the first pass.",
        "mse, ssim: means over images; change: after minus before. SSIM: Gaussian window of 1.5 pixels, range 1. Inputs and "
        "reconstructions are compared as they are, not clipped to [0, 1].",
    )
    picture = (
        f"{SHOWN} images, drawn at random with seed {seed} among those measured, at the middle strength of each corruption: clean, "
        "corrupted, the input of the last iteration, and what feedback generated for it. No error bars: single images."
    )
    return _summary("9d", answer, claims, charts, {"table.csv": distances}, picture, _caveats(n))


def last_iteration(table: Rows) -> int:
    """The last iteration of a table."""
    return max(row["iteration"] for row in table)


def _summary(
    figure: str,
    answer: str,
    claims: Rows,
    charts: Rows,
    tables: dict[str, tuple[str, ...]],
    caption: str,
    caveats: list[str],
) -> dict[str, Any]:
    """summary.json; ``tables``: file -> its title and its notes; ``caption`` is that of the figure."""
    return {
        "figure": figure,
        "title": TITLES[figure],
        "question": QUESTIONS[figure],
        "answer": answer,
        "claims": claims,
        "charts": charts,
        "tables": [{"file": file, "title": title, "notes": notes} for file, (title, *notes) in tables.items()],
        "pictures": [{"file": "figure.svg", "caption": caption}],
        "caveats": caveats,
    }


def _change(row: dict[str, Any]) -> str:
    """The change since iteration 0 with its interval."""
    return percent(row, "change", "change_low", "change_high")


def _narrows(words: str, measured: str, row: dict[str, Any]) -> dict[str, Any]:
    """The claim that attention narrows: that the change of its area is negative."""
    return claim(words, measured, -row["change_high"], -row["change_low"])


def _area_chart(over: str, layer: str, group: str) -> dict[str, Any]:
    """The area of attention by iteration."""
    caption = f"Share of the map of layer {layer}, {over} Smaller is narrower."
    return chart("Area that Grad-CAM covers", caption, "area", "area of attention", [group], "iteration {iteration}")


def _restores(row: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """The claim that feedback restores one corruption; ``made``: the row of the reconstruction itself."""
    measured = (
        f"mean squared error {row['mse_before']:.4f} to {row['mse_after']:.4f}, "
        f"{percent(row, 'mse_closer', 'mse_closer_low', 'mse_closer_high')} of the images closer; SSIM "
        f"{row['ssim_before']:.3f} to {row['ssim_after']:.3f}, {100 * row['ssim_closer']:.1f} % closer; the reconstruction "
        f"itself: {made['mse_after']:.4f}, {100 * made['mse_closer']:.1f} % closer"
    )
    words = f"Feedback restores images: {row['corruption']} {row['strength']:g} (by mean squared error)"
    return claim(words, measured, -row["mse_change_high"], -row["mse_change_low"])


def _caveats(n: int, *more: str) -> list[str]:
    """What a figure of ``n`` images and one network does not show."""
    few = [f"Too few images: {n}, of at least {LEAST} that the intervals were planned for."] if n < LEAST else []
    return [*few, "One network, trained once: how much another training run would differ is not measured here.", *more]
